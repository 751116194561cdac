"""Paired differences of two rows over the seeds, and the best row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean

from dmole_cli.reports.estimates import Estimate, estimate


@dataclass(frozen=True)
class Gain:
    """The scores of one row relative to those of another one.

    Attributes:
        other: label of the other row.
        difference: of the scores of the same seeds, in points.
        relative: of the means over these seeds, in percent; None if the other one's is not positive.
        means: those of the row and of the other one over these seeds.
    """

    other: str
    difference: Estimate
    relative: float | None
    means: tuple[float, float]


def gain(ours: Mapping[int, float], theirs: Mapping[int, float], *, other: str) -> Gain | None:
    """Compare two rows over the seeds that both have; None without such seeds.

    Args:
        ours: seed -> score.
        theirs: seed -> score of the other row.
        other: its label.
    """
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return None
    mean, base = (fmean(scores[seed] for seed in seeds) for scores in (ours, theirs))
    difference = estimate([ours[seed] - theirs[seed] for seed in seeds])
    return Gain(other, difference, 100 * (mean / base - 1) if base > 0 else None, (mean, base))


def best_of(
    scores: Mapping[str, Mapping[int, float]], *, among: Iterable[int] | None = None
) -> tuple[str, dict[int, float]] | None:
    """The row with the highest mean over the seeds that all rows with scores have, and its scores at these seeds.

    Rows are not compared over different seeds, so that one seed with high scores does not decide. None without such seeds.

    Args:
        scores: row -> seed -> score.
        among: the seeds that may count [all].
    """
    run = {label: values for label, values in scores.items() if values}
    if not run:
        return None
    seeds = set.intersection(*(set(values) for values in run.values()))
    seeds &= seeds if among is None else set(among)
    shared = {label: {seed: values[seed] for seed in sorted(seeds)} for label, values in run.items()}
    return max(shared.items(), key=lambda row: fmean(row[1].values())) if seeds else None
