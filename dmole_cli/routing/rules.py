"""Rules that choose the active experts of a sample from its reconstruction losses.

D-MoLE, arXiv 2506.11672, sections 4.1 and 4.3: task t is a candidate for a sample x where the loss m_t(x) of its router is below
the router's threshold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

SECOND_VOTE_SHARE = 0.3  # share of a batch's votes from which the reference implementation activates a further expert


def top_candidates(losses: Sequence[float], thresholds: Sequence[float], *, most: int) -> list[int]:
    """Routers whose loss is below their threshold, lowest loss first, at most `most` of them."""
    candidates = [t for t, (m, tau) in enumerate(zip(losses, thresholds, strict=True)) if m < tau]
    return sorted(candidates, key=lambda t: losses[t])[:most]


def as_trained(losses: Sequence[float], thresholds: Sequence[float]) -> list[int]:
    """The nearest candidate, with the expert that was active beside it when it was trained on samples like this one.

    That is the nearest candidate among the tasks before it: the transfer expert of training (section 4.3). A later expert, which
    did not exist when the nearest one was trained, is never active beside it. So a later task changes only the answers to those
    samples whose nearest candidate it becomes. The rule is ours.

    Returns:
        At most two tasks, numbered from 0 in the order of training.
    """
    nearest = top_candidates(losses, thresholds, most=1)
    before = nearest[0] if nearest else 0
    return nearest + top_candidates(losses[:before], thresholds[:before], most=1)


def batch_vote(losses: Sequence[Sequence[float]], thresholds: Sequence[float]) -> list[int]:
    """Route a whole batch as the reference implementation does in evaluation: each sample votes for its nearest candidate.

    The task with the most votes is active, and the second one if it has at least 30 % of the votes. Samples without
    a candidate do not vote. Of tasks with equal votes, the one with the lowest number wins.

    Returns:
        At most two tasks, numbered from 0.
    """
    votes = _votes(losses, thresholds)
    ranked = _ranked(votes)[:2]
    return [t for i, t in enumerate(ranked) if i == 0 or votes[t] / votes.total() >= SECOND_VOTE_SHARE]


def training_vote(losses: Sequence[Sequence[float]], thresholds: Sequence[float]) -> list[int]:
    """The transfer expert of a whole training batch, as the reference implementation chooses it.

    Args:
        losses: of the routers of the earlier tasks alone [samples][earlier tasks].
        thresholds: of these routers.

    Returns:
        The earlier task with the most votes, of equal votes the one with the lowest number, if it has at least 30 % of
        them; else nothing. Numbered from 0.
    """
    votes = _votes(losses, thresholds)
    return [t for t in _ranked(votes)[:1] if votes[t] / votes.total() >= SECOND_VOTE_SHARE]


def _votes(losses: Sequence[Sequence[float]], thresholds: Sequence[float]) -> Counter[int]:
    """Votes per task; a sample without a candidate has none."""
    return Counter(first[0] for row in losses if (first := top_candidates(row, thresholds, most=1)))


def _ranked(votes: Counter[int]) -> list[int]:
    return sorted(votes, key=lambda t: (-votes[t], t))
