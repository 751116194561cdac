"""Stage `allocate`: which sites get an expert of a task, under its budget (D-MoLE, arXiv 2506.11672, section 4.2)."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dmole_cli.allocation.placement import SiteScore, allocate, budget_total, parse_budget
from dmole_cli.artifacts.allocation import SCHEMA, VERSION, allocation_header, read_allocation, write_allocation
from dmole_cli.artifacts.files import digest_of_file
from dmole_cli.artifacts.outcome import Outcome
from dmole_cli.artifacts.profile import SiteProfile, read_profile
from dmole_cli.artifacts.provenance import Header, up_to_date
from dmole_cli.artifacts.run import D_MOLE
from dmole_cli.errors import DmoleError
from dmole_cli.experts.peft_format import placement_config
from dmole_cli.session import Session
from dmole_cli.settings.model import AllocateSettings

STATISTICS = ("score", "norm_mean")


def allocate_task(session: Session, task: str, *, method: str = D_MOLE, force: bool = False) -> Outcome:
    """Place one task's experts; reads its profile, writes `allocations/<task>.json` (other methods: in their folder).

    Raises:
        DmoleError: the method places its experts otherwise; there is no profile, it is another backbone's, the budget
            cannot be, or the output is stale.
    """
    profile, path = session.run.profile(task), session.run.allocation(task, method)
    settings, options = session.config.allocate, {"budget": session.config.allocate.budget}
    if method != D_MOLE:
        # Not at the top: a placement needs no torch, and answers at once without it.
        from dmole_cli.methods.base import load_method

        rules = load_method(method)
        if not rules.uses_allocation:
            raise DmoleError(
                f"method {method} reads no allocation",
                f"train it: {session.command('train-task', task, method=method)}",
            )
        settings, options = rules.allocation_settings(settings), {**options, "method": method}
    rows, made = read_profile(profile, hint=f"make it with: {session.command('profile', task)}")
    session.require_backbone(profile, made.backbone, session.command("profile", task))
    if settings.modalities != session.config.allocate.modalities:
        settings = spendable(rows, made, settings)
    key = session.run.name_of(profile)
    return place(
        rows,
        made,
        task=task,
        profile=(key, profile),
        path=path,
        settings=settings,
        force=force,
        redo=session.command("allocate", task, **options),
    )


def spendable(rows: list[SiteProfile], made: Header, settings: AllocateSettings) -> AllocateSettings:
    """Settings of an ablation that leaves towers out, at the lowest rank from the configured one up that can spend the budget.

    So the ablation trains as many parameters as the full method, whatever the size of the tower that is left; the scale
    alpha / rank stays. A budget in sites does not grow with the rank and is left as it is.
    """
    budget = parse_budget(settings.budget)
    width = sum(row.in_features + row.out_features for row in rows if row.modality in settings.modalities)
    if budget.form == "sites" or not width:
        return settings
    total = budget_total(budget, sites=len(rows), backbone_parameters=int(made.facts["backbone_parameters"]))
    rank = max(settings.rank, -(-total // width))
    return replace(settings, rank=rank, alpha=settings.alpha / settings.rank * rank)


def allocate_file(profile: Path, out: Path, settings: AllocateSettings, *, force: bool) -> Outcome:
    """Place from a bare profile file, without a run directory."""
    rows, made = read_profile(profile, hint="pass --profile the path of a file that `dmole profile` wrote")
    redo = f"dmole allocate --profile {profile} --budget {settings.budget} --out {out}"
    return place(
        rows,
        made,
        task=profile.stem,
        profile=(profile.name, profile),
        path=out,
        settings=settings,
        force=force,
        redo=redo,
    )


def place(
    rows: list[SiteProfile],
    made: Header,
    *,
    task: str,
    profile: tuple[str, Path],
    path: Path,
    settings: AllocateSettings,
    force: bool,
    redo: str,
) -> Outcome:
    """Allocate over profiled sites and write the placement."""
    if settings.score not in STATISTICS:
        raise DmoleError(f"unknown --score '{settings.score}'", f"choose one of: {', '.join(STATISTICS)}")
    header = Header(
        SCHEMA,
        VERSION,
        backbone=made.backbone,
        settings={**asdict(settings), "modalities": list(settings.modalities)},
        inputs={profile[0]: digest_of_file(profile[1])},
    )
    reads = (str(profile[1]),)
    if up_to_date(path, None if force else allocation_header(path), header, force=force, command=redo):
        return Outcome("allocate", task, path, written=False, reads=reads)
    budget = parse_budget(settings.budget)
    backbone_parameters = int(made.facts["backbone_parameters"])
    sites = [
        SiteScore(
            row.site, row.modality, settings.rank * (row.in_features + row.out_features), getattr(row, settings.score)
        )
        for row in rows
    ]
    placed = allocate(
        sites,
        budget=budget,
        backbone_parameters=backbone_parameters,
        rank=settings.rank,
        vision_floor=settings.vision_floor,
        curriculum=settings.curriculum,
        modalities=settings.modalities,
    )
    spent: dict[str, Any] = {
        "sites": placed.sites,
        "parameters": placed.parameters,
        "fraction": placed.parameters / backbone_parameters,
    }
    document = {
        "task": task,
        "budget": settings.budget,
        "rank": settings.rank,
        "alpha": settings.alpha,
        "spent": spent,
        "modalities": {name: asdict(modality) for name, modality in placed.modalities.items()},
        "sites": list(placed.chosen),
    }
    write_allocation(path, document, header)
    facts = {
        "sites": placed.sites,
        "parameters": placed.parameters,
        "vision_sites": placed.modalities["vision"].sites if "vision" in placed.modalities else 0,
    }
    return Outcome("allocate", task, path, written=True, reads=reads, facts=facts)


def as_peft(path: Path) -> dict[str, Any]:
    """A placement as the arguments of PEFT's LoraConfig."""
    document, _ = read_allocation(path, hint="make it with: dmole allocate")
    ranks = {site: int(document["rank"]) for site in document["sites"]}
    return placement_config(ranks, scale=float(document["alpha"]) / int(document["rank"]))
