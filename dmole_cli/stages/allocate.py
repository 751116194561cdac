"""Stage `allocate`: the sites that get an expert of a task, under its budget (D-MoLE, arXiv 2506.11672, section 4.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dmole_cli.allocation.placement import Placement, SiteScore, allocate, budget_total
from dmole_cli.artifacts.allocation import read_allocation, write_allocation
from dmole_cli.artifacts.files import digest_of_file
from dmole_cli.artifacts.headers import is_current
from dmole_cli.artifacts.kinds import ALLOCATION, D_MOLE
from dmole_cli.artifacts.outcome import Outcome
from dmole_cli.artifacts.profile import SiteProfile, read_profile
from dmole_cli.artifacts.provenance import Header
from dmole_cli.artifacts.run import Run
from dmole_cli.artifacts.staleness import check_inputs
from dmole_cli.backbones.lazy_model import LazyModel
from dmole_cli.data.tasks import Tasks
from dmole_cli.errors import DmoleError
from dmole_cli.methods.base import load_method
from dmole_cli.settings.budget import parse_budget
from dmole_cli.settings.model import AllocateSettings, Settings


@dataclass(frozen=True)
class Profiled:
    """A profile that was read.

    Attributes:
        rows: a row per candidate site.
        header: its provenance.
        path: the file.
        name: its name in headers.
    """

    rows: Sequence[SiteProfile]
    header: Header
    path: Path
    name: str

    @property
    def backbone_parameters(self) -> int:
        """Parameters of the backbone."""
        return int(self.header.facts["backbone_parameters"])


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
        DmoleError: the method uses no allocation; the profile is missing or another backbone's; the budget is too small or too
            large; or the output is stale.
    """
    rules = load_method(method)
    if not rules.uses_allocation:
        raise DmoleError(
            f"method {method} uses no allocation", f"train it: dmole train-task --task {task} --method {method}"
        )
    check_inputs(run, [run.profile(task)], fingerprint=model.fingerprint, data=data.current_digest)
    rows, header = read_profile(run.profile(task))
    profiled = Profiled(rows, header, run.profile(task), run.name_of(run.profile(task)))
    chosen = rules.allocation_settings(settings.allocate)
    if chosen.modalities != settings.allocate.modalities:
        chosen = with_spendable_rank(chosen, profiled)
    return place(profiled, chosen, task=task, path=run.allocation(task, method), force=force)


def allocate_file(profile: Path, out: Path, chosen: AllocateSettings, *, force: bool) -> Outcome:
    """Place experts from a profile outside of a run directory."""
    rows, header = read_profile(profile)
    return place(Profiled(rows, header, profile, profile.name), chosen, task=profile.stem, path=out, force=force)


def with_spendable_rank(chosen: AllocateSettings, profiled: Profiled) -> AllocateSettings:
    """Settings of an ablation without some modalities, at the lowest rank that spends the budget; at least the configured rank.

    The ablation then trains as many parameters as the full method, whatever the size of the remaining modality; the scale
    alpha / rank stays. A budget in sites does not depend on the rank and is left as it is.
    """
    budget = parse_budget(chosen.budget)
    width = sum(row.in_features + row.out_features for row in profiled.rows if row.modality in chosen.modalities)
    if budget.form == "sites" or not width:
        return chosen
    total = budget_total(budget, sites=len(profiled.rows), backbone_parameters=profiled.backbone_parameters)
    rank = max(chosen.rank, -(-total // width))
    return chosen.updated(rank=rank, alpha=chosen.alpha / chosen.rank * rank)


def place(profiled: Profiled, chosen: AllocateSettings, *, task: str, path: Path, force: bool) -> Outcome:
    """Allocate over the profiled sites and write the allocation."""
    header = Header.of(
        ALLOCATION,
        backbone=profiled.header.backbone,
        settings={**chosen.for_header(), "modalities": list(chosen.modalities)},
        inputs={profiled.name: digest_of_file(profiled.path)},
    )
    outcome = Outcome("allocate", task, path, reads=(str(profiled.path),))
    if is_current(path, ALLOCATION, header, force=force):
        return outcome
    placed = allocate(
        [_site_score(row, chosen) for row in profiled.rows],
        budget=parse_budget(chosen.budget),
        backbone_parameters=profiled.backbone_parameters,
        rank=chosen.rank,
        vision_floor=chosen.vision_floor,
        curriculum=chosen.curriculum,
        modalities=chosen.modalities,
    )
    write_allocation(path, _document(task, chosen, placed, profiled.backbone_parameters), header)
    vision = placed.modalities.get("vision")
    return outcome.wrote(sites=placed.sites, parameters=placed.parameters, vision_sites=vision.sites if vision else 0)


def _site_score(row: SiteProfile, chosen: AllocateSettings) -> SiteScore:
    parameters = chosen.rank * (row.in_features + row.out_features)
    return SiteScore(row.site, row.modality, parameters, getattr(row, chosen.score))


def _document(task: str, chosen: AllocateSettings, placed: Placement, backbone_parameters: int) -> dict[str, Any]:
    return {
        "task": task,
        "budget": chosen.budget,
        "rank": chosen.rank,
        "alpha": chosen.alpha,
        "spent": {
            "sites": placed.sites,
            "parameters": placed.parameters,
            "fraction": placed.parameters / backbone_parameters,
        },
        "modalities": {name: asdict(modality) for name, modality in placed.modalities.items()},
        "sites": list(placed.chosen),
    }


def as_peft(path: Path) -> dict[str, Any]:
    """An allocation as the arguments of PEFT's LoraConfig."""
    from dmole_cli.experts.peft_format import placement_config

    document, _ = read_allocation(path)
    ranks = {site: int(document["rank"]) for site in document["sites"]}
    return placement_config(ranks, scale=float(document["alpha"]) / int(document["rank"]))
