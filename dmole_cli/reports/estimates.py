"""Means over runs with confidence intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, stdev

LEVEL = 0.95


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


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of one or more values, one per seed, with its confidence interval."""
    from scipy.stats import t

    mean, count = fmean(values), len(values)
    if count == 1:
        return Estimate(mean, None, 1)
    half = float(t.ppf((1 + LEVEL) / 2, count - 1)) * stdev(values) / sqrt(count)
    return Estimate(mean, (mean - half, mean + half), count)
