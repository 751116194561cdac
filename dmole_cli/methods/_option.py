"""A hyper-parameter of a method."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Option:
    """A number that the user may set for a method: `--set NAME=VALUE`, or `[method.<name>]` in the configuration.

    Attributes:
        default: the value without a setting.
        description: what it means, in one sentence.
        ge: smallest valid value.
        gt: exclusive lower bound, used in place of `ge`.
        le: largest valid value.
        whole: whether it must be a whole number.
    """

    default: float
    description: str
    ge: float = 0.0
    gt: float | None = None
    le: float = math.inf
    whole: bool = False

    def accepts(self, value: float) -> bool:
        """Whether a value is finite, within the bounds, and whole where it must be."""
        above = value >= self.ge if self.gt is None else value > self.gt
        return math.isfinite(value) and above and value <= self.le and not (self.whole and value % 1)

    @property
    def bounds(self) -> str:
        """The valid values, in words."""
        if self.whole:
            return f"{self.ge:g} or more, as a whole number"
        if self.gt is not None:
            return f"greater than {self.gt:g}" + (f" and at most {self.le:g}" if self.le < math.inf else "")
        return f"{self.ge:g} or more" if self.le == math.inf else f"from {self.ge:g} to {self.le:g}"
