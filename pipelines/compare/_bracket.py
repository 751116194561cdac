"""Which trial of a method comes next, as a function of the finished ones alone; nothing is trained here.

The search starts with the trials of the grid. Afterwards, the best trial needs a neighbour on both sides of every option, with
the other options as they are: a trial whose value is at most one step of the axis away. Where one is missing, the value one step
away is tried. If that is better, it is the best trial, and needs neighbours itself. The search has ended when none is missing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dmole_cli.methods.base import Option

# The value of every option of a trial, by name, in the order of the axes.
Trial = tuple[tuple[str, float], ...]
# The score of every finished trial; minus infinity for one whose training has diverged.
Scores = Mapping[Trial, float]
# Values that differ by less than this share are the same step: 0.33 and 1 are a factor of 3 apart.
ROUNDING = 0.02


@dataclass(frozen=True)
class Axis:
    """The values of one option.

    Attributes:
        option: with the bounds that the method gives it.
        factor: the value beyond the last one is this times as large, or as small.
        low, high: bounds of the search, within those of the option.
    """

    option: Option
    factor: float
    low: float = 0.0
    high: float = math.inf

    def beyond(self, value: float, *, up: bool) -> float | None:
        """The value one step away in one direction; None at the end of the axis."""
        found = rounded(value * self.factor if up else value / self.factor)
        if self.option.whole:
            found = max(value + 1, round(found)) if up else min(value - 1, round(found))
        found = max(found, self.low, self.option.ge) if not up else min(found, self.high, self.option.le)
        moved = found > value if up else found < value
        return found if moved and self.option.accepts(found) else None


@dataclass(frozen=True)
class Search:
    """The search for the options of one method.

    Attributes:
        start: the trials of the grid, in its order.
        axes: by the option's name.
        most: number of trials after which the search ends in any case.
    """

    start: tuple[Trial, ...]
    axes: Mapping[str, Axis]
    most: int = 30

    def own(self, scores: Scores) -> dict[Trial, float]:
        """The finished trials that have the options of this search, the start first."""
        names = tuple(self.axes)
        found = {trial: score for trial, score in scores.items() if tuple(name for name, _ in trial) == names}
        ordered = [*(trial for trial in self.start if trial in found), *sorted(found.keys() - set(self.start))]
        return {trial: found[trial] for trial in ordered}

    def best(self, scores: Scores) -> Trial | None:
        """The trial with the highest score; None until the start has finished.

        Of equal ones, it is the earlier one of the start, else the one with the fewest missing neighbours, so that equal scores
        end a search.
        """
        own = self.own(scores)
        if any(trial not in own for trial in self.start) or (top := max(own.values())) == -math.inf:
            return None
        highest = [trial for trial, score in own.items() if score == top]
        return min(highest, key=lambda trial: 0 if trial in self.start else 1 + len(self._missing_beside(trial, own)))

    def missing_neighbours(self, scores: Scores) -> list[Trial]:
        """The trials beside the best one that have not finished, one for each direction without a neighbour."""
        best = self.best(scores)
        return [] if best is None else self._missing_beside(best, self.own(scores))

    def _missing_beside(self, trial: Trial, finished: Scores) -> list[Trial]:
        tried, own, found = [dict(other) for other in finished], dict(trial), []
        for name, axis in self.axes.items():
            line = [other[name] for other in tried if {**other, name: None} == {**own, name: None}]
            for up in (False, True):
                further = axis.beyond(own[name], up=up)
                if up and not own[name] and further is None:
                    # No factor leads away from 0, so the smallest value of another line does.
                    further = min((other[name] for other in tried if other[name] > 0), default=None)
                if further is not None and not any(_is_between(own[name], value, further) for value in line):
                    found.append(tuple((key, further if key == name else old) for key, old in trial))
        return found

    def next_trials(self, scores: Scores) -> list[Trial]:
        """The trials to run now, independent of each other; none if the search has ended."""
        own = self.own(scores)
        if left := [trial for trial in self.start if trial not in own]:
            return left
        return self.missing_neighbours(scores)[: max(0, self.most - len(own))]

    def chosen(self, scores: Scores) -> Trial | None:
        """The best trial once it has all its neighbours; None before."""
        return None if self.missing_neighbours(scores) else self.best(scores)


def _is_between(start: float, value: float, end: float) -> bool:
    """Whether a value lies between the start, which is excluded, and the end."""
    if value == start:
        return False
    return min(start, end) <= value <= max(start, end) or math.isclose(value, end, rel_tol=ROUNDING)


def rounded(value: float) -> float:
    """A value to three digits, so that repeated steps stay readable."""
    return float(f"{value:.3g}")


def trial_of(options: Mapping[str, float], axes: Sequence[str]) -> Trial:
    """Options as a trial."""
    return tuple((name, float(f"{options[name]:g}")) for name in axes)
