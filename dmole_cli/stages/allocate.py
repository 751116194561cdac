"""Stage `allocate`: sites and ranks of a task's expert, under its budget (D-MoLE, arXiv 2506.11672, section 4.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmole_cli.allocation.by_settings import (
    allocation_document,
    parameters_of_budget,
    place_sites,
    site_scores,
    uses_spectrum,
)
from dmole_cli.allocation.placement import Placement
from dmole_cli.artifacts.allocation import ranks_of, read_allocation, scale_of, write_allocation
from dmole_cli.artifacts.errors import DamagedArtifact
from dmole_cli.artifacts.files import digest_of_file
from dmole_cli.artifacts.headers import is_current
from dmole_cli.artifacts.kinds import ALLOCATION, D_MOLE
from dmole_cli.artifacts.outcome import Outcome
from dmole_cli.artifacts.profile import SiteProfile, read_profile, read_profile_file, read_spectra
from dmole_cli.artifacts.provenance import Header
from dmole_cli.artifacts.run import Run
from dmole_cli.artifacts.staleness import check_inputs
from dmole_cli.backbones.lazy_model import LazyModel
from dmole_cli.data.tasks import Tasks
from dmole_cli.errors import DmoleError
from dmole_cli.methods.base import load_method
from dmole_cli.settings.budget import parse_budget
from dmole_cli.settings.model import AUTO, AllocateSettings, Settings

NO_PROVENANCE = "no provenance"
NO_GRADIENT = "no batch of the profile had a gradient here"


@dataclass(frozen=True)
class Profiled:
    """A profile that was read.

    Attributes:
        rows: a row per site that was measured.
        header: its provenance; None for a file of another tool.
        path: the file.
        name: its name in headers.
        backbone_parameters: parameters of the backbone; None where they are neither recorded nor given.
    """

    rows: Sequence[SiteProfile]
    header: Header | None
    path: Path
    name: str
    backbone_parameters: int | None

    @property
    def candidates(self) -> list[SiteProfile]:
        """The sites that may get experts: those that the task's loss reaches."""
        return [row for row in self.rows if row.reached]

    @property
    def left_out(self) -> list[dict[str, str]]:
        """The other ones, with the reason."""
        return [
            {"name": row.site, "modality": row.modality, "why": NO_GRADIENT} for row in self.rows if not row.reached
        ]


def allocate_task(
    task: str,
    *,
    settings: Settings,
    data: Tasks,
    model: LazyModel,
    run: Run,
    method: str = D_MOLE,
    force: bool = False,
) -> Outcome:
    """Place one task's experts; reads its profile, writes `allocations/<task>.json` (other methods: in a folder of their own).

    Raises:
        DmoleError: the method uses no allocation; the profile is missing or another backbone's; the budget holds no expert; or
            the output is stale.
    """
    rules = load_method(method)
    if not rules.uses_allocation:
        raise DmoleError(
            f"method {method} uses no allocation", f"train it: dmole train-task --task {task} --method {method}"
        )
    check_inputs(run, [run.profile(task)], fingerprint=model.fingerprint, data=data.current_digest)
    rows, header = read_profile(run.profile(task))
    parameters = int(header.facts["backbone_parameters"])
    profiled = Profiled(rows, header, run.profile(task), run.name_of(run.profile(task)), parameters)
    chosen = rules.allocation_settings(settings.allocate)
    if chosen.modalities != settings.allocate.modalities:
        chosen = with_spendable_rank(chosen, profiled, full=settings.allocate)
    return place(profiled, chosen, task=task, path=run.allocation(task, method), force=force)


def allocate_file(
    profile: Path,
    out: Path,
    chosen: AllocateSettings,
    *,
    parameters: int | None = None,
    backbone: str | None = None,
    force: bool,
) -> Outcome:
    """Place experts from a profile outside of a run directory, which another tool may have written.

    Args:
        profile: a table with the columns of `SiteProfile`; without a header of dmole, the result has no provenance.
        out: where the allocation is written.
        chosen: budget, rank and rules.
        parameters: number of parameters of the backbone, for a profile that does not record it.
        backbone: the backbone, whose parameters are counted where the budget needs them and they are not given.
        force: run even if the output is up to date or stale.

    Raises:
        DmoleError: the profile is invalid; the budget is a share of an unknown number of parameters, or holds no expert; or the
            output is stale.
    """
    try:
        rows, header = read_profile_file(profile)
    except DamagedArtifact as error:
        raise DmoleError(error.message, "docs/method.md lists the columns of a profile") from error
    if header is not None:
        recorded = int(header.facts["backbone_parameters"])
        if parameters not in (None, recorded):
            message = f"--parameters {parameters}, but {profile} was made with a backbone of {recorded} parameters"
            raise DmoleError(message, "leave --parameters out")
        parameters = recorded
    elif parameters is None and parse_budget(chosen.budget).form == "backbone":
        parameters = _count_parameters(backbone, profile, chosen.budget)
    profiled = Profiled(rows, header, profile, profile.name, parameters)
    return place(profiled, chosen, task=profile.stem, path=out, force=force)


def _count_parameters(backbone: str | None, profile: Path, budget: str) -> int:
    if backbone is None:
        raise DmoleError(
            f"the budget {budget} is a share of the backbone's parameters, whose number {profile} does not record",
            "pass --parameters, like --parameters 2.2B, or --backbone; or write the budget like sites:50% or params:3.2M",
        )
    from dmole_cli.backbones.meta_model import meta_model

    return sum(p.numel() for p in meta_model(backbone).parameters())


def with_spendable_rank(chosen: AllocateSettings, profiled: Profiled, *, full: AllocateSettings) -> AllocateSettings:
    """Settings of an ablation without some modalities, at the lowest rank that spends the budget; at least the configured rank.

    The ablation then trains as many parameters as the full method, whatever the size of the remaining modality; the scale
    alpha / rank stays. A budget in sites does not depend on the rank and is left as it is. With rank auto, it is the highest rank
    of a site that is raised.

    Args:
        chosen: settings of the ablation.
        profiled: the profile.
        full: settings of the full method.
    """
    budget = parse_budget(chosen.budget)
    width, whole = (
        sum(row.in_features + row.out_features for row in profiled.candidates if row.modality in names)
        for names in (chosen.modalities, full.modalities)
    )
    if not width or (budget.form == "sites" and chosen.rank != AUTO):
        return chosen
    total = parameters_of_budget(
        site_scores(profiled.candidates, chosen.score), chosen, backbone_parameters=profiled.backbone_parameters or 0
    )
    # What the full method spends is limited by its sites, too: then no higher rank than spends as much.
    highest = chosen.max_rank if chosen.rank == AUTO else int(chosen.rank)
    spendable = highest * whole
    rank = max(highest, -(-total // width) if total < spendable else spendable // width)
    return (
        chosen.updated(max_rank=rank) if chosen.rank == AUTO else chosen.updated(rank=rank, alpha=chosen.scale * rank)
    )


def place(profiled: Profiled, chosen: AllocateSettings, *, task: str, path: Path, force: bool) -> Outcome:
    """Allocate over the profiled sites and write the allocation."""
    known = profiled.header is not None
    given = {} if known or profiled.backbone_parameters is None else {"parameters": profiled.backbone_parameters}
    header = Header.of(
        ALLOCATION,
        backbone=profiled.header.backbone if profiled.header else "",
        settings={**chosen.for_header(), "modalities": list(chosen.modalities), **given},
        inputs={profiled.name: digest_of_file(profiled.path)},
    )
    outcome = Outcome("allocate", task, path, reads=(str(profiled.path),))
    if is_current(path, ALLOCATION, header, force=force):
        return outcome
    _require_candidates(profiled, chosen, task)
    placed = place_sites(
        site_scores(profiled.candidates, chosen.score),
        chosen,
        backbone_parameters=profiled.backbone_parameters or 0,
        spectra=read_spectra(profiled.path) if uses_spectrum(chosen) else None,
    )
    facts = {**({} if known else {"profile": NO_PROVENANCE}), **_left_out(profiled)}
    document = allocation_document(task, chosen, placed, backbone_parameters=profiled.backbone_parameters)
    write_allocation(path, document, header.with_facts(**facts))
    vision = placed.modalities.get("vision")
    return outcome.wrote(
        sites=placed.sites,
        parameters=placed.parameters,
        vision_sites=vision.sites if vision else 0,
        budget=placed.budget,
        unit=placed.unit,
        used=round(placed.spent / placed.budget, 4),
        **_rest(profiled, chosen, placed),
        **facts,
    )


def _require_candidates(profiled: Profiled, chosen: AllocateSettings, task: str) -> None:
    """Refuse a profile in which no site of the chosen modalities has a gradient."""
    if any(row.modality in chosen.modalities for row in profiled.candidates):
        return
    if any(row.modality in chosen.modalities for row in profiled.rows):
        where = " or ".join(chosen.modalities)
        other = sorted({row.modality for row in profiled.candidates})
        check = f"check the task's data: dmole tasks check {task}"
        hint = f"place the experts there: --modalities {other[0]}" if other else check
        raise DmoleError(f"the loss of {task} reaches no site of the {where} tower, by {profiled.path}", hint)


def _left_out(profiled: Profiled) -> dict[str, Any]:
    return {"left_out": profiled.left_out} if profiled.left_out else {}


def _rest(profiled: Profiled, chosen: AllocateSettings, placed: Placement) -> dict[str, Any]:
    """How to use the rest of a budget that is larger than experts on all sites; empty for other budgets."""
    if placed.budget <= placed.capacity:
        return {}
    ways, fixed = [], chosen.reference_rank
    if chosen.rank == AUTO:
        # The lowest one at which the sites can take it all; beyond the singular values of a profile, a higher rank gains nothing.
        rank = -(-placed.budget * chosen.max_rank // placed.capacity)
        ways.append(f"{'--utility log ' if uses_spectrum(chosen) else ''}--max-rank {rank} --force")
    elif placed.unit == "parameters" and (rank := placed.budget * fixed // placed.capacity) > fixed:
        ways.append(f"--rank {rank} --alpha {chosen.scale * rank:.10g} --force (the same alpha / rank)")
    if profiled.header is None or profiled.header.settings.get("sites") != "linear":
        ways.append("a profile of more sites (dmole profile --sites linear)")
    return {"unused": placed.budget - placed.spent, **({"to_use_the_rest": " or ".join(ways)} if ways else {})}


def as_peft(path: Path) -> dict[str, Any]:
    """An allocation as the arguments of PEFT's LoraConfig."""
    from dmole_cli.experts.peft_format import placement_config

    document, _ = read_allocation(path)
    return placement_config(ranks_of(document), scale=scale_of(document))
