"""Ranks of one adapter on all sites whose modalities share a budget by their difficulty (the ablation v4)."""

from __future__ import annotations

from collections.abc import Mapping

from dmole_cli.allocation.placement import VISION
from dmole_cli.errors import DmoleError


def modality_ranks(
    widths: Mapping[str, int], scores: Mapping[str, float], *, budget_parameters: int, vision_floor: float
) -> dict[str, int]:
    """Return the rank of each modality's sites: the budget is split as in `allocate`, then spent in whole ranks.

    Vision gets max(int(floor * B), int(share * B + 0.5)) of the budget B, language the rest; a modality's rank is the highest
    one that its part affords on all of its sites, and at least 1. What is left over raises the ranks further, that of the
    modality with the larger unspent part first. The budget is never exceeded.

    Args:
        widths: modality -> sum of inputs and outputs of its sites, the parameters of rank 1 on all of them.
        scores: modality -> sum of the scores of its sites. If all are zero, the widths take their place.
        budget_parameters: maximum parameters of the adapter.
        vision_floor: minimum share of the budget for vision, from 0 to 1.

    Raises:
        DmoleError: the budget is smaller than rank 1 on all sites.
    """
    least = sum(widths.values())
    if budget_parameters < least:
        raise DmoleError(
            f"{budget_parameters} parameters do not hold an adapter of rank 1 on all sites",
            f"raise the budget to {least} parameters or more, or choose fewer sites",
        )
    weights: Mapping[str, float] = scores if any(scores.values()) else widths
    share = weights.get(VISION, 0) / sum(weights.values())
    vision = max(int(vision_floor * budget_parameters), int(share * budget_parameters + 0.5))
    if set(widths) <= {VISION}:
        vision = budget_parameters
    parts = {name: vision if name == VISION else budget_parameters - vision for name in widths}
    ranks = {name: max(1, parts[name] // width) for name, width in widths.items()}
    # Rank 1 may be more than a modality's part; the other one then gives up what it takes.
    while sum(ranks[name] * width for name, width in widths.items()) > budget_parameters:
        largest = max(ranks, key=lambda name: (ranks[name] > 1, ranks[name] * widths[name]))
        ranks[largest] -= 1
    for name in sorted(widths, key=lambda name: ranks[name] * widths[name] - parts[name]):
        unspent = budget_parameters - sum(ranks[other] * width for other, width in widths.items())
        ranks[name] += unspent // widths[name]
    return ranks
