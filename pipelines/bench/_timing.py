"""How everything here is measured: interleaved in one process, each round against the reference of the same round."""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch.profiler import ProfilerActivity, profile

Variant = Callable[[], object]
Times = dict[str, list[float]]


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        name: what is compared with what.
        ratio: the figure; where it is timed, the median over the rounds.
        low: lower quartile over the rounds; the figure itself where nothing is timed.
        high: upper quartile.
        reach: what was asked for; None where nothing was.
        at_least: whether more is better.
    """

    name: str
    ratio: float
    low: float
    high: float
    reach: float | None = None
    at_least: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the figure is as good as asked for; None where nothing was."""
        if self.reach is None:
            return None
        return self.ratio >= self.reach if self.at_least else self.ratio <= self.reach

    def as_dict(self) -> dict[str, str | float | None]:
        """What stands in bench.json."""
        return {"name": self.name, "ratio": self.ratio, "low": self.low, "high": self.high, "reach": self.reach}


def counted(name: str, ratio: float, reach: float | None = None, *, at_least: bool = False) -> Row:
    """A figure that comes out the same every time."""
    return Row(name, ratio, ratio, ratio, reach, at_least)


def timed(
    name: str, times: Times, variant: str, reference: str, reach: float | None = None, *, at_least: bool = False
) -> Row:
    """Time of a variant over that of the reference; with `at_least` the reciprocal, how many times as fast it is."""
    pairs = zip(times[variant], times[reference], strict=True)
    ratios = [theirs / ours if at_least else ours / theirs for ours, theirs in pairs]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return Row(name, middle, low, high, reach, at_least)


def interleaved(
    variants: Mapping[str, Variant],
    *,
    rounds: int,
    repeats: int = 1,
    warm: bool = False,
    seed: int = 0,
    clock: Callable[[], float] = time.process_time,
) -> Times:
    """Seconds per variant and round.

    In every round all variants run in a new random order, so that whatever disturbs the machine disturbs all of them alike.

    Args:
        variants: name -> what is timed.
        rounds: how often.
        repeats: calls that are timed together, for what takes too little time to be timed alone.
        warm: whether each has run before; else it does once, untimed.
        seed: of the orders.
        clock: processor time, unless another one is given.
    """
    choose, times = random.Random(seed), {name: [] for name in variants}
    if not warm:
        for function in variants.values():
            function()
    for _ in range(rounds):
        for name in choose.sample(list(variants), len(variants)):
            gc.collect()
            gc.disable()
            started = clock()
            for _ in range(repeats):
                variants[name]()
            times[name].append((clock() - started) / repeats)
            gc.enable()
    return times


def peak_bytes(function: Variant) -> int:
    """Highest level of the tensors that the CPU allocator hands out during a call, above where it stood before.

    Exact: the profiler reports every allocation and every release, with its size and in order. Releases of what was there before
    are not reported, so they cannot make a peak look lower.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    assert profiler.profiler is not None
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    level = highest = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        level += event.nbytes()
        highest = max(highest, level)
    return highest
