"""`dmole sites`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dmole_cli.commands import console
from dmole_cli.commands.options import BackboneOption, ConfigOption, JsonOption, open_session

if TYPE_CHECKING:
    from rich.table import Table

    from dmole_cli.backbones.sites import LeftOut, Site

HELP = "Show where experts may sit in a backbone, and what is left out and why; loads no weights."


def sites(
    sites: Annotated[
        str | None,
        typer.Option(help="attention, linear, or a regular expression on module paths. [default: attention]"),
    ] = None,
    config: ConfigOption = None,
    backbone: BackboneOption = None,
    json: JsonOption = False,
) -> None:
    """From the configuration alone."""
    session = open_session(run=Path(), config=config, backbone=backbone, profile={"sites": sites})
    from dataclasses import asdict

    from dmole_cli.backbones.meta_model import meta_model
    from dmole_cli.backbones.sites import find_sites, left_out
    from dmole_cli.reports.tables import show

    pattern = session.config.profile.sites
    model = meta_model(session.config.backbone)
    found, rest = find_sites(model, pattern), left_out(model, pattern)
    total = sum(p.numel() for p in model.parameters())
    if json:
        console.data(
            {
                "model": type(model).__name__,
                "parameters": total,
                "pattern": pattern,
                "sites": [asdict(site) for site in found],
                "left_out": [asdict(part) for part in rest],
            }
        )
        return
    inside = sum(site.parameters for site in found)
    print(f"{type(model).__name__}: {total:,} parameters, {len(found)} sites ({pattern}) with {inside:,} of them")
    show(_sites_table(found))
    show(_rest_table(rest))


def _sites_table(found: list[Site]) -> Table:
    """Sites that differ in nothing but their block share a row."""
    from rich.table import Table

    table = Table("modality", "blocks", "site", "kind", title="sites", title_justify="left")
    for name in ("inputs", "outputs", "parameters", "sites"):
        table.add_column(name, justify="right")
    alike: dict[tuple, list[Site]] = {}
    for site in found:
        place = site.name.replace(f".{site.block}.", ".*.", 1)
        alike.setdefault(
            (site.modality, place, site.kind, site.in_features, site.out_features, site.parameters), []
        ).append(site)
    for (modality, place, kind, inputs, outputs, parameters), members in alike.items():
        blocks = _ranges([site.block for site in members])
        table.add_row(
            modality, blocks, place, kind, f"{inputs:,}", f"{outputs:,}", f"{parameters:,}", str(len(members))
        )
    return table


def _rest_table(rest: list[LeftOut]) -> Table:
    from rich.table import Table

    table = Table("modality", "left out", "kind", title="left out", title_justify="left")
    for name in ("modules", "parameters"):
        table.add_column(name, justify="right")
    table.add_column("why")
    for part in rest:
        size = f"{part.parameters:,}" if part.parameters else "shared"
        table.add_row(part.modality, part.name, part.kind, str(part.modules), size, part.why)
    return table


def _ranges(numbers: list[int]) -> str:
    """Numbers in ascending order as `0-3, 5`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)
