"""Means over seeds with confidence intervals, and paired differences of two rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, stdev

from dmole_cli.reports.differences import LEVEL


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        mean: over the seeds.
        ends: of the 95 % confidence interval of Student's t distribution; None for one seed.
        seeds: number of seeds.
    """

    mean: float
    ends: tuple[float, float] | None
    seeds: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval is on one side of zero."""
        return self.ends is not None and (self.ends[0] > 0 or self.ends[1] < 0)


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


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of one or more values, with its confidence interval."""
    from scipy.stats import t

    mean, count = fmean(values), len(values)
    if count == 1:
        return Estimate(mean, None, 1)
    half = float(t.ppf((1 + LEVEL) / 2, count - 1)) * stdev(values) / sqrt(count)
    return Estimate(mean, (mean - half, mean + half), count)


def gain(ours: Mapping[int, float], theirs: Mapping[int, float], *, other: str) -> Gain | None:
    """Compare two rows over the seeds that both have; None if there is no such seed.

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
