"""The same budget for every method: a uniform placement has the sites, the scale and the parameters of D-MoLE's allocation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmole_cli.allocation.placement import budget_total
from dmole_cli.artifacts.allocation import read_allocation, scale_of
from dmole_cli.artifacts.headers import header_of
from dmole_cli.artifacts.kinds import D_MOLE, PROFILE
from dmole_cli.errors import DmoleError
from dmole_cli.settings.budget import parse_budget
from dmole_cli.settings.model import AUTO

if TYPE_CHECKING:
    from dmole_cli.backbones.backbone import Backbone
    from dmole_cli.backbones.sites import Site
    from dmole_cli.settings.model import Settings


def uniform_budget(
    backbone: Backbone, settings: Settings, *, method: str, allocation: Path, profile: Path
) -> tuple[list[Site], int]:
    """The candidate sites of the backbone, and the number of parameters that the budget allows on all of them.

    Args:
        backbone: the frozen model.
        settings: budget, rank, scale and candidate sites.
        method: the method whose experts are placed on all candidate sites.
        allocation: D-MoLE's allocation of the task; where there is one, the placement must agree with it.
        profile: the task's profile.

    Raises:
        DmoleError: names the difference from the allocation in candidate sites or scale; or in parameters, where the budget is
            the same and they differ by more than a rank on all sites.
    """
    from dmole_cli.backbones.reach import find_candidates

    sites, budget = find_candidates(backbone.model, settings.profile.sites), parse_budget(settings.allocate.budget)
    if budget.form == "sites":
        # Half of the sites at the full rank cost as much, on average, as all sites at half of it.
        parameters = int(
            budget.amount * sum(site.expert_parameters(settings.allocate.reference_rank) for site in sites)
        )
    else:
        parameters = budget_total(budget, sites=len(sites), backbone_parameters=backbone.parameters)
    if not allocation.exists():
        return sites, parameters
    document, header = read_allocation(allocation)
    # An allocation of another backbone is not compared: the stages that read it refuse it.
    if header.backbone == backbone.fingerprint:
        try:
            _require_same(settings, sites, parameters, allocation=allocation, document=document, profile=profile)
        except DmoleError as error:
            message = f"method {method} would not have the budget of {D_MOLE}: {error.message}"
            raise DmoleError(message, error.hint) from error
    return sites, parameters


def _require_same(
    settings: Settings,
    sites: Sequence[Site],
    parameters: int,
    *,
    allocation: Path,
    document: Mapping[str, Any],
    profile: Path,
) -> None:
    chosen, rank, alpha = settings.allocate, document["rank"], float(document["alpha"])
    profiled = header_of(profile, PROFILE)
    wanted = str(profiled.settings.get("sites", "")) if profiled else ""
    found = []
    if wanted not in ("", settings.profile.sites):
        found.append(f"sites {wanted}, here {settings.profile.sites}")
    elif foreign := set(document["sites"]) - {site.name for site in sites}:
        found.append(f"an expert at {min(foreign)}, which is no candidate here")
    if (theirs := f"{scale_of(document):g}") != (mine := f"{chosen.scale:g}"):
        found.append(f"alpha / rank {theirs}, here {mine}")
    if found:
        hint = f"in the configuration, set rank = {json.dumps(rank)} and alpha = {alpha:g} in [allocate]"
        hint += f", and sites = '{wanted}' in [profile]" if wanted else ""
        raise DmoleError(f"{allocation} has {'; '.join(found)}", f"{hint}; or use a run directory of its own")
    per_rank = sum(site.in_features + site.out_features for site in sites)
    spent, uniform = int(document["spent"]["parameters"]), parameters // per_rank * per_rank
    if document["budget"] == chosen.budget and abs(uniform - spent) > per_rank:
        hint = f"train it with --budget params:{spent}"
        # The budget holds more than experts of this rank on all sites.
        if rank != AUTO and len(document["sites"]) == len(sites):
            higher = parameters // per_rank
            hint += (
                f", or allocate at a higher rank: --rank {higher} --alpha {scale_of(document) * higher:.10g} --force"
            )
        raise DmoleError(f"{allocation} has {spent} parameters at the budget {chosen.budget}, here {uniform}", hint)
