"""Rules that choose the active experts of a sample from its reconstruction losses.

D-MoLE, arXiv 2506.11672, sections 4.1 and 4.3: task t is a candidate for a sample x where the loss m_t(x) of its router is below
the router's threshold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

SECOND_VOTE_SHARE = 0.3  # share of a batch's votes from which the reference implementation activates a second expert


def top_candidates(losses: Sequence[float], thresholds: Sequence[float], *, most: int) -> list[int]:
    """Routers whose loss is below their threshold, lowest loss first, at most `most` of them."""
    candidates = [t for t, (m, tau) in enumerate(zip(losses, thresholds, strict=True)) if m < tau]
    return sorted(candidates, key=lambda t: losses[t])[:most]


def batch_vote(losses: Sequence[Sequence[float]], thresholds: Sequence[float]) -> list[int]:
    """Route a whole batch as the reference does: each sample votes for its nearest candidate.

    The task with the most votes is active, and the second one if it has at least 30 % of the votes. Samples without
    a candidate do not vote. A tie is won by the task that was voted for first.
    """
    votes = [first[0] for row in losses if (first := top_candidates(row, thresholds, most=1))]
    ranked = Counter(votes).most_common(2)
    return [t for i, (t, n) in enumerate(ranked) if i == 0 or n >= SECOND_VOTE_SHARE * len(votes)]
