"""Times the first batches of a piece of work, run by the code of the stage itself."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch

Item = TypeVar("Item")


@dataclass(frozen=True)
class Moment:
    """Readings of the clocks, in seconds, and of the backbone's counts."""

    wall: float
    cpu: float
    counts: Counter[str]


@dataclass(frozen=True)
class Speed:
    """Seconds per unit of work, and those that the first batch takes in addition.

    Attributes:
        per_unit: seconds.
        cpu_per_unit: seconds of the processor.
        first: seconds of the first batch in addition: libraries choose kernels, a worker process starts.
    """

    per_unit: float
    cpu_per_unit: float
    first: float = 0.0


class Meter:
    """Passes batches on to a loop until its time is over, and times them.

    The first batch is timed apart from the others, if there is time for more than one.

    Args:
        device: where the batches are computed.
        counts: gives what the backbone has computed so far.
        limit: seconds from the second batch on; the batch that passes the limit is the last one.
    """

    def __init__(self, device: torch.device, counts: Callable[[], Counter[str]], limit: float) -> None:
        self._device, self._counts, self._limit = device, counts, limit
        self._moments: list[Moment] = []

    def over(self, batches: Iterable[Item]) -> Iterator[Item]:
        """The batches that fit into the limit, at least one."""
        self._moments = [self._now()]
        for number, batch in enumerate(batches):
            if number and self._moments[-1].wall - self._moments[min(1, number - 1)].wall >= self._limit:
                return
            yield batch
            self._moments.append(self._now())

    def speed(self, unit: str) -> Speed:
        """Seconds per unit, a name of the backbone's counts."""
        begun, first, last = self._moments[0], self._moments[1], self._moments[-1]
        base = first if len(self._moments) > 2 else begun
        amount = (last.counts - base.counts)[unit]
        per_unit, cpu = (last.wall - base.wall) / amount, (last.cpu - base.cpu) / amount
        usual = per_unit * (first.counts - begun.counts)[unit]
        return Speed(per_unit, cpu, max(0.0, first.wall - begun.wall - usual))

    def _now(self) -> Moment:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return Moment(time.perf_counter(), time.process_time(), Counter(self._counts()))
