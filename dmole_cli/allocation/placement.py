"""Placement: the sites of the backbone that get an expert of a task, from their scores and a budget."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from typing import Literal

from dmole_cli.errors import DmoleError
from dmole_cli.settings.budget import Budget

VISION, LANGUAGE = "vision", "language"
MODALITIES = (VISION, LANGUAGE)


@dataclass(frozen=True, slots=True)
class SiteScore:
    """A candidate site of the backbone.

    Attributes:
        name: module path.
        modality: `vision` or `language`.
        parameters: parameters of an expert at this site, rank * (inputs + outputs).
        score: sensitivity of the task's loss to this site; finite and not negative.
    """

    name: str
    modality: str
    parameters: int
    score: float


@dataclass(frozen=True, slots=True)
class ModalityPlacement:
    """Budget and experts of one modality.

    Attributes:
        share: its share of the difficulty, from 0 to 1, before the vision floor and before what the other modality left over.
        budget: its part of the budget, in the placement's unit, after both; at most the cost of experts on all of its sites.
        sites: number of its sites that got an expert.
        parameters: of these experts.
        cutoff: the lowest score that got an expert, None if none did.
    """

    share: float
    budget: int
    sites: int
    parameters: int
    cutoff: float | None


@dataclass(frozen=True, slots=True)
class Placement:
    """The sites that host an expert of a task, with the figures to verify the decision by hand.

    Attributes:
        chosen: names of the sites, in forward order.
        unit: unit of the budget, `sites` or `parameters`.
        budget: maximum number of these.
        capacity: cost, in this unit, of experts on all sites that may get one.
        sites: number of sites that got an expert.
        parameters: of all experts.
        ranks: site -> rank of its expert, for the sites of `chosen`.
        modalities: name -> figures of each modality.
    """

    chosen: tuple[str, ...]
    unit: Literal["sites", "parameters"]
    budget: int
    capacity: int
    sites: int
    parameters: int
    ranks: Mapping[str, int]
    modalities: Mapping[str, ModalityPlacement]

    @property
    def spent(self) -> int:
        """What the experts use of the budget, in its unit."""
        return self.sites if self.unit == "sites" else self.parameters


def allocate(
    sites: Sequence[SiteScore],
    *,
    budget: Budget,
    backbone_parameters: int,
    rank: int,
    vision_floor: float = 0.25,
    curriculum: bool = True,
    modalities: Sequence[str] = MODALITIES,
) -> Placement:
    """Choose the sites that get an expert: split the budget between the modalities, then take the best sites of each.

    With B the budget in its unit, vision gets max(int(floor * B), int(share * B + 0.5)) and language the rest; what a modality
    cannot use goes to the other one. Within its part, each modality takes its sites in the order of their scores as long as they
    fit; equal scores in forward order. What both leave of B goes to the remaining sites of both in the same order, so that no
    site is left that B could hold. The budget is a cap: it is never exceeded, and all sites get experts where it holds them all.

    Args:
        sites: all candidate sites in forward order.
        budget: from `parse_budget`. The form `sites` counts over all of `sites`, even if `modalities` leaves one
            out, so that such an ablation may spend as much as the full method.
        backbone_parameters: parameters of the backbone, for a budget of the form `backbone`.
        rank: rank at which the sites' parameters were counted; only reported.
        vision_floor: minimum share of the budget for vision, from 0 to 1.
        curriculum: split by difficulty, the sum of a modality's scores. Without it, or if no site has a score above
            zero, split by capacity, the cost of experts on all of a modality's sites. The floor applies with the curriculum only.
        modalities: those that may get experts.

    Raises:
        DmoleError: a score is negative or not finite, there are no sites, or the budget is smaller than the smallest expert.

    Source: https://arxiv.org/abs/2506.11672, with the rounding and the floor of its public implementation; the rules for what the
    modalities leave over are ours.
    """
    check_sites(sites, vision_floor=vision_floor, modalities=modalities)
    candidates = {name: [site for site in sites if site.modality == name] for name in MODALITIES if name in modalities}
    in_sites = budget.form == "sites"
    capacities = {name: sum(_cost(site, in_sites=in_sites) for site in members) for name, members in candidates.items()}
    total = budget_total(budget, sites=len(sites), backbone_parameters=backbone_parameters)
    smallest = min(_cost(site, in_sites=in_sites) for members in candidates.values() for site in members)
    if total < smallest:
        raise too_small(budget, total, smallest, sites=len(sites), parameters=backbone_parameters, rank=rank)
    usable = min(total, sum(capacities.values()))
    shares = shares_of(candidates, capacities=capacities, curriculum=curriculum)
    parts = split(usable, shares=shares, capacities=capacities, vision_floor=vision_floor if curriculum else 0.0)
    chosen = {name: _take(members, budget=parts[name], in_sites=in_sites) for name, members in candidates.items()}
    _fill(chosen, parts, candidates=candidates, in_sites=in_sites)
    placed = {name: _placed(members, share=shares[name], budget=parts[name]) for name, members in chosen.items()}
    names = {site.name for members in chosen.values() for site in members}
    in_order = tuple(site.name for site in sites if site.name in names)
    return Placement(
        chosen=in_order,
        unit="sites" if in_sites else "parameters",
        budget=total,
        capacity=sum(capacities.values()),
        sites=len(names),
        parameters=sum(part.parameters for part in placed.values()),
        ranks=dict.fromkeys(in_order, rank),
        modalities=placed,
    )


def _placed(members: Sequence[SiteScore], *, share: float, budget: int) -> ModalityPlacement:
    return ModalityPlacement(
        share=share,
        budget=budget,
        sites=len(members),
        parameters=sum(site.parameters for site in members),
        cutoff=min((site.score for site in members), default=None),
    )


def budget_total(budget: Budget, *, sites: int, backbone_parameters: int) -> int:
    """Return a budget as a whole number: of sites (to the nearest, halves up) or of parameters (rounded down)."""
    if budget.form == "sites":
        return int(sites * budget.amount + 0.5)
    # As the decimal that the user wrote: in binary, 0.29 of 100 is less than 29.
    share = backbone_parameters if budget.form == "backbone" else 1
    return int(share * Decimal(str(budget.amount)))


def spread_rank(sites_dims: Sequence[tuple[int, int]], *, budget_parameters: int) -> int:
    """Return the highest rank at which experts on *all* sites stay within a budget (the ablation without allocator).

    Args:
        sites_dims: inputs and outputs of every site.
        budget_parameters: maximum parameters of all experts together.

    Raises:
        DmoleError: there are no sites, or the budget is smaller than rank 1 on all of them.
    """
    per_rank = sum(inputs + outputs for inputs, outputs in sites_dims)
    if per_rank == 0:
        raise DmoleError("there is no candidate site", "choose sites that the backbone has: --sites")
    if budget_parameters < per_rank:
        raise DmoleError(
            f"{budget_parameters} parameters do not hold an expert of rank 1 on each of {len(sites_dims)} sites",
            f"raise the budget to {per_rank} parameters or more, or choose fewer sites",
        )
    return budget_parameters // per_rank


def check_sites(sites: Sequence[SiteScore], *, vision_floor: float, modalities: Sequence[str]) -> None:
    """Reject invalid sites, floors and modalities.

    Raises:
        DmoleError: as `allocate`.
    """
    problems = [problem for site in sites for problem in _problems(site)]
    if len({site.name for site in sites}) < len(sites):
        problems.append("a site is listed twice")
    if problems:
        raise DmoleError(f"the sites cannot be ranked: {'; '.join(problems)}", "profile the task again")
    if not 0.0 <= vision_floor <= 1.0:
        raise DmoleError(f"the vision floor is {vision_floor:.0%}; expected 0% to 100%", "change --vision-floor")
    known = " or ".join(MODALITIES)
    if not modalities or not set(modalities) <= set(MODALITIES):
        raise DmoleError(
            f"no experts can be placed in {', '.join(modalities) or 'no modality'}", f"name {known} or both"
        )
    if not any(site.modality in modalities for site in sites):
        raise DmoleError(f"there is no candidate site in {' or '.join(modalities)}", "choose sites the backbone has")


def _problems(site: SiteScore) -> list[str]:
    problems = []
    if not (math.isfinite(site.score) and site.score >= 0):
        problems.append(f"the score of {site.name} is {site.score}")
    if site.modality not in MODALITIES:
        problems.append(f"the modality of {site.name} is {site.modality!r}")
    if site.parameters < 1:
        problems.append(f"an expert at {site.name} has {site.parameters} parameters")
    return problems


def too_small(budget: Budget, total: int, smallest: int, *, sites: int, parameters: int, rank: int) -> DmoleError:
    """The error of a budget that is smaller than the smallest expert.

    Args:
        budget: as it was written.
        total: as a number, in its unit.
        smallest: cost of the smallest expert.
        sites: number of candidate sites.
        parameters: of the backbone.
        rank: of the smallest expert.
    """
    if budget.form == "sites":
        least = f"sites:{_percent_of(0.5, sites)}"
        return DmoleError(f"the budget {budget.text} of {sites} sites is less than one", f"use {least} or more")
    least = f"params:{smallest}"
    if budget.form == "backbone" and smallest <= parameters:
        least = f"{_percent_of(smallest, parameters)} or params:{smallest}"
    message = f"the budget {budget.text} is {total} parameters, and the smallest expert of rank {rank} has {smallest}"
    return DmoleError(message, f"use {least} or more{', or a lower rank' if rank > 1 else ''}")


def _percent_of(part: float, whole: int) -> str:
    """The smallest percentage of two significant digits that is at least part / whole."""
    exact = Decimal(100) * Decimal(part) / Decimal(whole)
    step = Decimal(1).scaleb(exact.adjusted() - 1)
    return f"{(exact / step).to_integral_value(ROUND_CEILING) * step:f}%"


def _cost(site: SiteScore, *, in_sites: bool) -> int:
    return 1 if in_sites else site.parameters


def shares_of(
    candidates: Mapping[str, Sequence[SiteScore]], *, capacities: Mapping[str, int], curriculum: bool
) -> dict[str, float]:
    """Modality -> its share of the budget: of the scores with the curriculum, else of the capacities."""
    difficulty = {name: math.fsum(site.score for site in members) for name, members in candidates.items()}
    weights: Mapping[str, float] = difficulty if curriculum and any(difficulty.values()) else capacities
    whole = sum(weights.values())
    return {name: weight / whole for name, weight in weights.items()}


def split(
    total: int, *, shares: Mapping[str, float], capacities: Mapping[str, int], vision_floor: float
) -> dict[str, int]:
    """Divide a budget between the modalities; what one cannot use goes to the other."""
    vision = max(int(vision_floor * total), int(total * shares.get(VISION, 0.0) + 0.5))
    vision_capacity, language_capacity = capacities.get(VISION, 0), capacities.get(LANGUAGE, 0)
    # The total is at most the sum of the capacities, so that both parts end within theirs.
    vision = min(max(vision, total - language_capacity), vision_capacity)
    parts = {VISION: vision, LANGUAGE: total - vision}
    return {name: parts[name] for name in shares}


def _take(sites: Sequence[SiteScore], *, budget: int, in_sites: bool) -> list[SiteScore]:
    taken = []
    # Sorting is stable, so equal scores stay in forward order.
    for site in sorted(sites, key=lambda site: -site.score):
        cost = _cost(site, in_sites=in_sites)
        if cost <= budget:
            taken.append(site)
            budget -= cost
    return taken


def _fill(
    chosen: dict[str, list[SiteScore]],
    parts: dict[str, int],
    *,
    candidates: Mapping[str, Sequence[SiteScore]],
    in_sites: bool,
) -> None:
    """Give what the modalities left of their parts to the remaining sites; adds to `chosen`, and moves it between `parts`."""
    left = {
        name: parts[name] - sum(_cost(site, in_sites=in_sites) for site in members) for name, members in chosen.items()
    }
    taken = {site.name for members in chosen.values() for site in members}
    rest = [site for members in candidates.values() for site in members if site.name not in taken]
    for site in _take(rest, budget=sum(left.values()), in_sites=in_sites):
        own, cost = site.modality, _cost(site, in_sites=in_sites)
        chosen[own].append(site)
        for other in left:
            moved = min(left[other], max(0, cost - left[own])) if other != own else 0
            parts[other], parts[own] = parts[other] - moved, parts[own] + moved
            left[other], left[own] = left[other] - moved, left[own] + moved
        left[own] -= cost
