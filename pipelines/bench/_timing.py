"""How the benchmarks measure: variants interleaved in one process, ratios within each round."""

from __future__ import annotations

import gc
import math
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
    """One result.

    Attributes:
        name: what is compared with what.
        ratio: the result; of timings, the median over the rounds.
        low: lower quartile over the rounds; equals `ratio` where nothing is timed.
        high: upper quartile.
        target: the required value; None where there is none.
        at_least: whether the target is a lower bound.
        error: why there is no result; empty where there is one.
    """

    name: str
    ratio: float
    low: float
    high: float
    target: float | None = None
    at_least: bool = False
    error: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the result meets its target; None without a target or without a result."""
        if self.target is None or self.error:
            return None
        return self.ratio >= self.target if self.at_least else self.ratio <= self.target

    def as_dict(self) -> dict[str, str | float | None]:
        """The entry in bench.json."""
        if self.error:
            return {"name": self.name, "error": self.error, "target": self.target}
        return {"name": self.name, "ratio": self.ratio, "low": self.low, "high": self.high, "target": self.target}


def counted(name: str, ratio: float, target: float | None = None, *, at_least: bool = False) -> Row:
    """A deterministic result."""
    return Row(name, ratio, ratio, ratio, target, at_least)


def failed(name: str, error: str, target: float | None = None, *, at_least: bool = False) -> Row:
    """A result that could not be measured."""
    return Row(name, math.nan, math.nan, math.nan, target, at_least, error)


def timed(
    name: str, times: Times, variant: str, reference: str, target: float | None = None, *, at_least: bool = False
) -> Row:
    """Time of a variant divided by that of the reference; with `at_least` the reciprocal, the speed-up."""
    pairs = zip(times[variant], times[reference], strict=True)
    ratios = [theirs / ours if at_least else ours / theirs for ours, theirs in pairs]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return Row(name, middle, low, high, target, at_least)


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

    Each round runs all variants in a new random order, so that other load on the machine affects all of them alike.

    Args:
        variants: name -> function to time.
        rounds: number of rounds.
        repeats: calls that are timed together, for functions too short to be timed alone.
        warm: whether each variant has run before; otherwise it runs once untimed.
        seed: of the orders.
        clock: gives seconds; processor time by default.
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
    """Peak memory of torch's CPU allocator during a call, above the level before it.

    Exact: the profiler reports every allocation and every release with its size, in order. Releases of memory allocated before
    the call are not reported, so they cannot lower the peak.
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
