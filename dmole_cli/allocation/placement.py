"""Placement: which sites of the backbone get an expert of a task, given their scores and a budget."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from dmole_cli.errors import DmoleError
from dmole_cli.settings.budget import Budget

VISION, LANGUAGE = "vision", "language"
MODALITIES = (VISION, LANGUAGE)


@dataclass(frozen=True, slots=True)
class SiteScore:
    """A candidate site of the backbone.

    Attributes:
        name: the full name of the module.
        modality: `vision` or `language`.
        parameters: what an expert at this site adds, rank * (inputs + outputs).
        score: how strongly the task's loss pulls at this site; finite and not negative.
    """

    name: str
    modality: str
    parameters: int
    score: float


@dataclass(frozen=True, slots=True)
class ModalityPlacement:
    """What one modality was given and what it used.

    Attributes:
        share: its part of the difficulty, from 0 to 1, before the vision floor and before the other's rest.
        budget: what it may spend, in the placement's unit, after both.
        sites: how many of its sites got an expert.
        parameters: what these experts add.
        cutoff: the lowest score that got an expert, None where none did.
    """

    share: float
    budget: int
    sites: int
    parameters: int
    cutoff: float | None


@dataclass(frozen=True, slots=True)
class Placement:
    """Which sites host an expert of a task, with the figures to check the decision by hand.

    Attributes:
        chosen: the names of the sites, in forward order.
        unit: what the budget counts, `sites` or `parameters`.
        budget: how many of them were allowed.
        sites: how many sites got an expert.
        parameters: what the experts add in all.
        rank: the rank that the parameters were counted at.
        modalities: the figures of each modality by its name.
    """

    chosen: tuple[str, ...]
    unit: Literal["sites", "parameters"]
    budget: int
    sites: int
    parameters: int
    rank: int
    modalities: Mapping[str, ModalityPlacement]


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
    """Choose the sites that get an expert: split the budget between the modalities, then take the best of each.

    With B the budget in its unit, vision gets max(int(floor * B), int(share * B + 0.5)), language the rest, and a
    modality that cannot use its part hands what is over to the other. Within its part a modality goes down its
    ranking and takes every site that still fits; equal scores in forward order. The budget is never exceeded.

    Args:
        sites: all candidate sites in forward order.
        budget: from `parse_budget`. `sites` counts over all of `sites`, also when `modalities` leaves one out, so
            that such an ablation may spend as much as the full method.
        backbone_parameters: the size that a budget of form `backbone` is a fraction of.
        rank: the rank that the sites' parameters were counted at; only reported.
        vision_floor: the least part of the budget that vision gets, from 0 to 1.
        curriculum: share by difficulty, the sum of a modality's scores. Without it, or when no site has a score
            above zero, share by capacity, what experts on all of a modality's sites would cost. The floor belongs
            to the curriculum and holds with it only.
        modalities: those that may get experts.

    Raises:
        DmoleError: when a score is not a number from 0 up, there are no sites, or the budget holds no expert or more
            than all sites can take.

    Source: https://arxiv.org/abs/2506.11672, with the rounding and the floor of its public implementation.
    """
    _check(sites, vision_floor=vision_floor, modalities=modalities)
    candidates = {name: [site for site in sites if site.modality == name] for name in MODALITIES if name in modalities}
    in_sites = budget.form == "sites"
    capacities = {name: sum(_cost(site, in_sites=in_sites) for site in members) for name, members in candidates.items()}
    total = budget_total(budget, sites=len(sites), backbone_parameters=backbone_parameters)
    if total > sum(capacities.values()):
        raise _too_large(budget, total=total, capacity=sum(capacities.values()), sites=len(sites), rank=rank)

    shares = _shares(candidates, capacities=capacities, curriculum=curriculum)
    parts = _split(total, shares=shares, capacities=capacities, vision_floor=vision_floor if curriculum else 0.0)
    chosen = {name: _take(members, budget=parts[name], in_sites=in_sites) for name, members in candidates.items()}
    names = {site.name for members in chosen.values() for site in members}
    if not names:
        smallest = min(site.parameters for members in candidates.values() for site in members)
        raise _too_small(budget, parts=parts, smallest=smallest, sites=len(sites), rank=rank)
    placed = {
        name: ModalityPlacement(
            share=shares[name],
            budget=parts[name],
            sites=len(members),
            parameters=sum(site.parameters for site in members),
            cutoff=min((site.score for site in members), default=None),
        )
        for name, members in chosen.items()
    }
    return Placement(
        chosen=tuple(site.name for site in sites if site.name in names),
        unit="sites" if in_sites else "parameters",
        budget=total,
        sites=len(names),
        parameters=sum(part.parameters for part in placed.values()),
        rank=rank,
        modalities=placed,
    )


def budget_total(budget: Budget, *, sites: int, backbone_parameters: int) -> int:
    """Return a budget as a whole number: of sites (to the nearest, halves up) or of parameters (rounded down)."""
    if budget.form == "sites":
        return int(sites * budget.amount + 0.5)
    # Through the decimal that the user wrote: in binary, 0.29 of 100 comes out under 29.
    share = backbone_parameters if budget.form == "backbone" else 1
    return int(share * Decimal(str(budget.amount)))


def spread_rank(sites_dims: Sequence[tuple[int, int]], *, budget_parameters: int) -> int:
    """Return the highest rank at which experts on *all* sites stay within a budget (the ablation without allocator).

    Args:
        sites_dims: inputs and outputs of every site.
        budget_parameters: what all experts together may add.

    Raises:
        DmoleError: when there are no sites, or the budget does not hold rank 1 on all of them.
    """
    per_rank = sum(inputs + outputs for inputs, outputs in sites_dims)
    if per_rank == 0:
        raise DmoleError("there are no sites to spread experts over", "choose sites that the backbone has")
    if budget_parameters < per_rank:
        raise DmoleError(
            f"{budget_parameters} parameters do not hold an expert of rank 1 on each of {len(sites_dims)} sites",
            f"raise the budget to {per_rank} parameters or more, or choose fewer sites",
        )
    return budget_parameters // per_rank


def _check(sites: Sequence[SiteScore], *, vision_floor: float, modalities: Sequence[str]) -> None:
    problems = [problem for site in sites for problem in _problems(site)]
    if len({site.name for site in sites}) < len(sites):
        problems.append("a site is listed twice")
    if problems:
        raise DmoleError(f"the sites cannot be ranked: {'; '.join(problems)}", "profile the task again")
    if not 0.0 <= vision_floor <= 1.0:
        raise DmoleError(f"the vision floor {vision_floor:.0%} is not a part of the whole", "give one from 0% to 100%")
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


def _too_large(budget: Budget, *, total: int, capacity: int, sites: int, rank: int) -> DmoleError:
    if budget.form == "sites":
        most = f"sites:{math.floor(1000 * capacity / sites) / 10}%"
        return DmoleError(f"the budget {budget.text} is {total} sites, but {capacity} can host experts", f"give {most}")
    return DmoleError(
        f"the budget {budget.text} is {total} parameters, but experts of rank {rank} on all sites have {capacity}",
        f"give params:{capacity} or less, or raise the rank",
    )


def _too_small(budget: Budget, *, parts: Mapping[str, int], smallest: int, sites: int, rank: int) -> DmoleError:
    if budget.form == "sites":
        return DmoleError(
            f"the budget {budget.text} of {sites} sites is less than one", f"give sites:{100 / sites:.1f}% or more"
        )
    split = " and ".join(f"{part} parameters for {name}" for name, part in parts.items())
    return DmoleError(
        f"the budget {budget.text} leaves {split}, which holds no expert of rank {rank}",
        f"the smallest expert has {smallest} parameters: raise the budget or lower the rank",
    )


def _cost(site: SiteScore, *, in_sites: bool) -> int:
    return 1 if in_sites else site.parameters


def _shares(
    candidates: Mapping[str, Sequence[SiteScore]], *, capacities: Mapping[str, int], curriculum: bool
) -> dict[str, float]:
    difficulty = {name: math.fsum(site.score for site in members) for name, members in candidates.items()}
    weights: Mapping[str, float] = difficulty if curriculum and any(difficulty.values()) else capacities
    whole = sum(weights.values())
    return {name: weight / whole for name, weight in weights.items()}


def _split(
    total: int, *, shares: Mapping[str, float], capacities: Mapping[str, int], vision_floor: float
) -> dict[str, int]:
    """Divide a budget between the modalities; what one has no use for goes to the other."""
    vision = max(int(vision_floor * total), int(total * shares.get(VISION, 0.0) + 0.5))
    vision_capacity, language_capacity = capacities.get(VISION, 0), capacities.get(LANGUAGE, 0)
    # The capacities hold the total together, so both parts end within theirs.
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
