"""The placement that the settings of `allocate` ask for, and its document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from dmole_cli.allocation.adaptive_ranks import RankRules, allocate_ranks, rank_budget
from dmole_cli.allocation.placement import Placement, SiteScore, allocate
from dmole_cli.artifacts.profile import SiteProfile
from dmole_cli.errors import DmoleError
from dmole_cli.settings.budget import parse_budget
from dmole_cli.settings.model import AUTO, AllocateSettings


def place_sites(
    sites: Sequence[SiteScore],
    chosen: AllocateSettings,
    *,
    backbone_parameters: int,
    spectra: Mapping[str, Sequence[float]] | None = None,
) -> Placement:
    """Choose sites and ranks as the settings ask for.

    Args:
        sites: all candidate sites in forward order; `parameters` are those of one rank, inputs plus outputs.
        chosen: budget, rank and rules.
        backbone_parameters: parameters of the backbone; 0 if the budget does not depend on them.
        spectra: site -> largest singular values of its gradient, where the utility is `spectrum`.

    Raises:
        DmoleError: as `allocate`; or the utility is `spectrum` and there are no spectra.
    """
    common: dict[str, Any] = {
        "budget": parse_budget(chosen.budget),
        "backbone_parameters": backbone_parameters,
        "vision_floor": chosen.vision_floor,
        "curriculum": chosen.curriculum,
        "modalities": chosen.modalities,
    }
    if chosen.rank != AUTO:
        rank = chosen.reference_rank
        return allocate([replace(site, parameters=rank * site.parameters) for site in sites], rank=rank, **common)
    if uses_spectrum(chosen) and not spectra:
        raise DmoleError(
            "--utility spectrum needs the singular values of the gradients, which the profile does not have",
            "profile the task again with --spectrum, or use --utility log",
        )
    rules = RankRules(chosen.reference_rank, chosen.max_rank, (spectra or {}) if uses_spectrum(chosen) else {})
    return allocate_ranks(sites, rules=rules, **common)


def site_scores(rows: Sequence[SiteProfile], column: str) -> list[SiteScore]:
    """The sites of a profile with the scores of a column, and the parameters of one rank."""
    return [SiteScore(row.site, row.modality, row.in_features + row.out_features, getattr(row, column)) for row in rows]


def parameters_of_budget(sites: Sequence[SiteScore], chosen: AllocateSettings, *, backbone_parameters: int) -> int:
    """The budget as a number of parameters; one in sites, at the reference rank."""
    budget, rank = parse_budget(chosen.budget), chosen.reference_rank
    return rank_budget(budget, sites, backbone_parameters=backbone_parameters, reference_rank=rank)


def uses_spectrum(chosen: AllocateSettings) -> bool:
    """Whether the placement depends on the spectra of the profile."""
    return chosen.rank == AUTO and chosen.utility == "spectrum"


def allocation_document(
    task: str, chosen: AllocateSettings, placed: Placement, *, backbone_parameters: int | None
) -> dict[str, Any]:
    """The content of an allocation file.

    Args:
        task: its task.
        chosen: the settings of the placement.
        placed: the placement.
        backbone_parameters: parameters of the backbone; None if unknown.
    """
    return {
        "task": task,
        "budget": chosen.budget,
        "rank": chosen.rank,
        "alpha": chosen.alpha,
        "spent": {
            "sites": placed.sites,
            "parameters": placed.parameters,
            "fraction": placed.parameters / backbone_parameters if backbone_parameters else None,
        },
        "modalities": {name: asdict(modality) for name, modality in placed.modalities.items()},
        "sites": list(placed.chosen),
        # Implied by `rank` where all sites share it.
        **({"scale": chosen.scale, "ranks": dict(placed.ranks)} if chosen.rank == AUTO else {}),
    }
