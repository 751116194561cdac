"""Ranks by sensitivity: every site gets the rank that its sensitivity pays for, until the budget is spent.

A rank of a site costs its inputs plus its outputs. Ranks start at 0, and the next rank always goes to the site where it gains
most per parameter:

    (u(r + 1) - u(r)) / (inputs + outputs)

The utility u is concave in r, so that this order is the optimum of the sum of utilities under a budget, up to the parameters that
are left when no further rank fits. The published allocator (arXiv 2506.11672, section 4.2) gives the same rank to some sites and
none to the others; this form is ours. The split of the budget between the modalities is the published one.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from dmole_cli.allocation.placement import (
    MODALITIES,
    ModalityPlacement,
    Placement,
    SiteScore,
    budget_total,
    check_sites,
    shares_of,
    split,
    too_small,
)
from dmole_cli.errors import DmoleError
from dmole_cli.settings.budget import Budget

# The utility of a site's rank, from 0 on.
Utility = Callable[[int], float]


@dataclass(frozen=True, slots=True)
class Rankable:
    """A site whose rank is to be chosen.

    Attributes:
        name: module path.
        width: parameters of one rank, inputs plus outputs.
        utility: the worth of its rank; concave, 0 at rank 0.
    """

    name: str
    width: int
    utility: Utility


@dataclass(frozen=True)
class RankRules:
    """How ranks are chosen.

    Attributes:
        reference_rank: the rank at which a budget in sites is measured.
        max_rank: highest rank of a site.
        spectra: site -> singular values of its gradient, for `spectrum_utility`; empty for `log_utility`.
    """

    reference_rank: int
    max_rank: int
    spectra: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def utilities(self, sites: Sequence[SiteScore]) -> dict[str, Utility]:
        """Site -> utility of its rank. If no site has a score above zero, all of them count the same.

        Raises:
            DmoleError: a site has no spectrum, or one that is not finite; or all spectra are 0.
        """
        if self.spectra:
            if not any(any(self._spectrum(site.name)) for site in sites):
                raise DmoleError("no singular value of any site is above 0", "profile the task again")
            return {site.name: spectrum_utility(self._spectrum(site.name)) for site in sites}
        equal = not any(site.score for site in sites)
        return {site.name: log_utility(1.0 if equal else site.score) for site in sites}

    def highest_rank(self, name: str) -> int:
        """The highest rank that a site can get: a spectrum pays for no more ranks than it has values above 0."""
        values = self.spectra.get(name)
        return self.max_rank if values is None else min(self.max_rank, sum(value > 0 for value in values))

    def _spectrum(self, name: str) -> Sequence[float]:
        values = self.spectra.get(name, ())
        if not values or not all(math.isfinite(value) and value >= 0 for value in values):
            raise DmoleError(f"the spectrum of {name} is {list(values)}", "profile the task again")
        return values


def log_utility(score: float) -> Utility:
    """u(r) = score * log2(1 + r): every doubling of 1 + r is worth the same."""
    return lambda rank: score * math.log2(1 + rank)


def spectrum_utility(spectrum: Sequence[float]) -> Utility:
    """u(r) = the sum of the r largest singular values of the site's gradient.

    Under the spectral norm, this is by how much the best update of rank r and norm 1 lowers the loss, to first order.

    Args:
        spectrum: singular values; ranks beyond their number are worth nothing more.
    """
    values = sorted(spectrum, reverse=True)
    return lambda rank: math.fsum(values[:rank])


def raise_ranks(
    sites: Iterable[Rankable], *, budget: int, max_rank: int, start: Mapping[str, int] | None = None
) -> dict[str, int]:
    """Raise ranks one by one, where the gain per parameter is largest, as long as one fits into the budget.

    Equal gains are taken in the order of the sites. A rank without any gain is not taken.

    Args:
        sites: in forward order.
        budget: maximum number of parameters of the ranks that are added.
        max_rank: highest rank of a site.
        start: name -> rank so far; 0 where it is missing.

    Returns:
        Name -> rank, for all sites with a rank above 0.
    """
    listed = list(sites)
    ranks = {site.name: (start or {}).get(site.name, 0) for site in listed}

    def gain(site: Rankable) -> float:
        rank = ranks[site.name]
        return (site.utility(rank + 1) - site.utility(rank)) / site.width

    waiting = [(-gain(site), position) for position, site in enumerate(listed) if ranks[site.name] < max_rank]
    heapq.heapify(waiting)
    while waiting:
        negative, position = heapq.heappop(waiting)
        site = listed[position]
        if site.width > budget or negative >= 0:  # what is left only shrinks, so this site's turn is over
            continue
        ranks[site.name] += 1
        budget -= site.width
        if ranks[site.name] < max_rank:
            heapq.heappush(waiting, (-gain(site), position))
    return {name: rank for name, rank in ranks.items() if rank}


def allocate_ranks(
    sites: Sequence[SiteScore],
    *,
    budget: Budget,
    backbone_parameters: int,
    rules: RankRules,
    vision_floor: float = 0.25,
    curriculum: bool = True,
    modalities: Sequence[str] = MODALITIES,
) -> Placement:
    """Choose the rank of every site; the counterpart of `allocate`, whose arguments it shares.

    Each modality spends its part of the budget on its own sites; what both leave goes to the next ranks of any of them.

    Args:
        sites: all candidate sites in forward order; `parameters` are those of one rank.
        budget: from `parse_budget`. The form `sites` is the parameters of that share of all sites at the reference rank.
        backbone_parameters: parameters of the backbone, for a budget of the form `backbone`.
        rules: how ranks are chosen.
        vision_floor: minimum share of the budget for vision, from 0 to 1.
        curriculum: as in `allocate`.
        modalities: those that may get experts.

    Raises:
        DmoleError: as `allocate`.
    """
    check_sites(sites, vision_floor=vision_floor, modalities=modalities)
    candidates = {name: [site for site in sites if site.modality == name] for name in MODALITIES if name in modalities}
    utilities = rules.utilities([site for own in candidates.values() for site in own])
    capacities = {
        name: sum(rules.highest_rank(site.name) * site.parameters for site in own) for name, own in candidates.items()
    }
    total = rank_budget(budget, sites, backbone_parameters=backbone_parameters, reference_rank=rules.reference_rank)
    smallest = min(site.parameters for own in candidates.values() for site in own)
    if total < smallest:
        raise too_small(budget, total, smallest, sites=len(sites), parameters=backbone_parameters, rank=1)
    usable = min(total, sum(capacities.values()))
    shares = shares_of(candidates, capacities=capacities, curriculum=curriculum)
    parts = split(usable, shares=shares, capacities=capacities, vision_floor=vision_floor if curriculum else 0.0)
    rankable = {
        name: [Rankable(site.name, site.parameters, utilities[site.name]) for site in own]
        for name, own in candidates.items()
    }
    ranks = dict[str, int]()
    for name, own in rankable.items():
        ranks |= raise_ranks(own, budget=parts[name], max_rank=rules.max_rank)
    everything = [site for own in rankable.values() for site in own]
    left = usable - sum(ranks.get(site.name, 0) * site.width for site in everything)
    ranks = raise_ranks(everything, budget=left, max_rank=rules.max_rank, start=ranks)
    capacity = sum(capacities.values())
    return _placement(sites, ranks, candidates, shares=shares, parts=parts, total=total, capacity=capacity)


def rank_budget(budget: Budget, sites: Sequence[SiteScore], *, backbone_parameters: int, reference_rank: int) -> int:
    """Return a budget as a number of parameters; `sites` have those of one rank."""
    if budget.form == "sites":
        return int(budget.amount * reference_rank * sum(site.parameters for site in sites))
    return budget_total(budget, sites=len(sites), backbone_parameters=backbone_parameters)


def _placement(
    sites: Sequence[SiteScore],
    ranks: Mapping[str, int],
    candidates: Mapping[str, Sequence[SiteScore]],
    *,
    shares: Mapping[str, float],
    parts: Mapping[str, int],
    total: int,
    capacity: int,
) -> Placement:
    figures = {}
    spent = {name: sum(ranks.get(s.name, 0) * s.parameters for s in own) for name, own in candidates.items()}
    # What one modality leaves may pay for ranks of the other one.
    moved = {name: max(0, spent[name] - parts[name]) for name in candidates}
    for name, own in candidates.items():
        chosen = [site for site in own if site.name in ranks]
        figures[name] = ModalityPlacement(
            share=shares[name],
            budget=parts[name] + moved[name] - sum(excess for other, excess in moved.items() if other != name),
            sites=len(chosen),
            parameters=spent[name],
            cutoff=min((site.score for site in chosen), default=None),
        )
    chosen_names = tuple(site.name for site in sites if site.name in ranks)
    return Placement(
        chosen=chosen_names,
        unit="parameters",
        budget=total,
        capacity=capacity,
        sites=len(chosen_names),
        parameters=sum(part.parameters for part in figures.values()),
        ranks={name: ranks[name] for name in chosen_names},
        modalities=figures,
    )
