"""Shared by the benchmarks of the GPU: the model, the clock, peak memory, kernels, and variants that may fail.

Everything also runs on a CPU in tiny sizes, where operators of the profiler's record take the place of kernels.
"""

from __future__ import annotations

import functools
import gc
import os
import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from dmole_cli.backbones.backbone import Backbone
from dmole_cli.backbones.sites import find_sites
from dmole_cli.errors import first_line
from dmole_cli.routing.autoencoder import Autoencoder
from pipelines.bench._models import half_of, random_samples, vision_language
from pipelines.bench._timing import Row, Times, Variant, counted, failed, interleaved, peak_bytes, timed
from pipelines.bench.step import TINY, Case

TWO_BILLION = {"vision": (24, 1024), "language": (24, 2048), "words": 92_553, "side": 448}  # InternVL2-2B
TASKS = [str(number) for number in range(9)]
NEWEST = TASKS[-1]
BATCH, TEXT, ANSWER = 8, 64, 16  # samples, and tokens of each beside its image's
ANNOTATIONS = ("Memcpy", "Memset", "Optimizer.", "ProfilerStep", "##", "[memory]")


def device_for(*, tiny: bool) -> torch.device | None:
    """The GPU; where there is none, the CPU for tiny sizes, and None for others."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("cpu") if tiny else None


def routes(count: int, shift: int = 0) -> list[tuple[str, ...]]:
    """The active experts of so many samples: the newest and one of five earlier ones, in turn."""
    return [(NEWEST, TASKS[(i + shift) % 5]) for i in range(count)]


@contextmanager
def all_cores(device: torch.device) -> Iterator[None]:
    """Inside the block, PyTorch uses half of the cores to prepare batches for a GPU; on a CPU nothing changes."""
    before = torch.get_num_threads()
    if device.type == "cuda":
        torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def random_internvl(device: torch.device, **sizes: Any) -> Backbone:
    """A random InternVL in bfloat16, made on the device; arguments are those of `vision_language`."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    torch.manual_seed(0)
    try:
        with device:
            return vision_language(**sizes)
    finally:
        torch.set_default_dtype(before)


@functools.cache
def two_billion(device: torch.device, *, tiny: bool) -> Backbone:
    """The model that all benchmarks of a process share."""
    return random_internvl(device, **(TINY if tiny else TWO_BILLION))


def case_of(backbone: Backbone, *, tiles: int, tiny: bool) -> Case:
    """A model, nine experts on half of the attention projections each, eight samples, and the earlier tasks' routers."""
    names = [site.name for site in find_sites(backbone.model, "attention")]
    placed = {task: half_of(names, seed=i) for i, task in enumerate(TASKS)}
    batch = random_samples(backbone, BATCH, text=4 if tiny else TEXT, answer=2 if tiny else ANSWER, tiles=tiles)
    width = sum(part["width"] for part in backbone.feature_layout())
    routers = {
        task: Autoencoder(width).to(backbone.device, backbone.dtype).requires_grad_(False) for task in TASKS[:-1]
    }
    return Case(backbone, placed, batch, routers)


def clock(device: torch.device) -> Callable[[], float]:
    """A clock that waits for all kernels launched so far."""

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    return now


def peak(device: torch.device, function: Variant) -> float:
    """Peak memory of a call above the level before it, in bytes."""
    if device.type != "cuda":
        return peak_bytes(function)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def kernels(device: torch.device, function: Variant) -> tuple[int, float]:
    """Number of kernels that a call runs, and the seconds during which at least one of them runs.

    Copies and annotations do not count. On the CPU, operators of PyTorch take the place of kernels.

    Raises:
        RuntimeError: nothing was recorded.
    """
    # The GPU's activities alone are a smaller record, but not every version of PyTorch makes one.
    both = [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    for activities in ([ProfilerActivity.CUDA], both) if device.type == "cuda" else ([ProfilerActivity.CPU],):
        if spans := _recorded(device, function, activities):
            return len(spans), covered(spans) / 1e9
    raise RuntimeError("the profiler has recorded no kernel")


def _recorded(device: torch.device, function: Variant, activities: list[ProfilerActivity]) -> list[tuple[int, int]]:
    """Start and end of every kernel of a call, in nanoseconds."""
    gpu = device.type == "cuda"
    wanted = DeviceType.CUDA if gpu else DeviceType.CPU
    with profile(activities=activities) as profiler:
        function()
        clock(device)()
    assert profiler.profiler is not None
    return [
        (event.start_ns(), event.start_ns() + event.duration_ns())
        for event in profiler.profiler.kineto_results.events()
        if event.device_type() == wanted
        and not event.name().startswith(ANNOTATIONS)
        and not event.is_user_annotation()
        and (gpu or event.name().startswith("aten::"))
    ]


def covered(spans: list[tuple[int, int]]) -> int:
    """Length of the union of intervals."""
    total = reached = 0
    for start, end in sorted(spans):
        total += max(0, end - max(start, reached))
        reached = max(reached, end)
    return total


@contextmanager
def caught(name: str, errors: dict[str, str]) -> Iterator[None]:
    """Inside the block, an exception is printed and noted under a name instead of being raised."""
    try:
        yield
    except Exception as error:
        traceback.print_exc()
        errors[name] = f"{type(error).__name__}: {first_line(error)}"[:300]
    if name in errors:
        gc.collect()  # tensors in the frames of the exception
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def attempted(name: str, value: Callable[[], float], target: float | None = None, *, at_least: bool = False) -> Row:
    """The number that a function computes, or why it fails."""
    with caught(name, errors := {}):
        return counted(name, value(), target, at_least=at_least)
    return failed(name, errors[name], target, at_least=at_least)


@dataclass
class Measured:
    """Times and peak memory of variants.

    Attributes:
        device: of the model.
        functions: variant -> what is measured.
        times: variant -> seconds of each round.
        peaks: variant -> peak memory in bytes above the level before the call.
        errors: variant -> why it failed.
    """

    device: torch.device
    functions: dict[str, Variant] = field(default_factory=dict)
    times: Times = field(default_factory=dict)
    peaks: dict[str, float] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    _kernels: dict[str, tuple[int, float]] = field(default_factory=dict)

    def time(self, name: str, variant: str, reference: str, target: float | None = None) -> Row:
        """Time of a variant over that of the reference."""
        if error := self._error(variant, reference):
            return failed(name, error, target)
        return timed(name, self.times, variant, reference, target)

    def peak(self, name: str, variant: str, reference: str, target: float | None = None) -> Row:
        """Peak memory of a variant over that of the reference."""
        if error := self._error(variant, reference):
            return failed(name, error, target)
        return counted(name, self.peaks[variant] / self.peaks[reference], target)

    def figure(
        self, name: str, variants: tuple[str, ...], value: Callable[..., float], target: float | None = None
    ) -> Row:
        """A number that a function computes from the names of variants, if none of them failed."""
        if error := self._error(*variants):
            return failed(name, error, target)
        return attempted(name, lambda: value(*variants), target)

    def milliseconds(self, name: str, variant: str, *, calls: int = 1) -> Row:
        """Median time of one of so many calls that were timed together."""
        return self.figure(f"{name}: milliseconds", (variant,), lambda one: 1000 * self.median(one) / calls)

    def gibibytes(self, name: str, variant: str) -> Row:
        """Peak memory."""
        return self.figure(f"{name}: peak memory, GiB", (variant,), lambda one: self.peaks[one] / 2**30)

    def launched(self, name: str, variant: str, *, of: int = 1) -> Row:
        """Number of kernels, divided by the number of steps or tokens of a call."""
        return self.figure(name, (variant,), lambda one: self.kernels(one)[0] / of)

    def launched_beyond(self, name: str, variant: str, reference: str, *, of: int = 1) -> Row:
        """Number of kernels beyond those of the reference, divided."""
        return self.figure(
            name, (variant, reference), lambda one, other: (self.kernels(one)[0] - self.kernels(other)[0]) / of
        )

    def busy(self, name: str, variant: str) -> Row:
        """Time in which at least one kernel runs, in percent of the median time of a call, which nothing records."""
        words = f"{name}: GPU busy, percent of the time"
        return self.figure(words, (variant,), lambda one: 100 * self.kernels(one)[1] / self.median(one))

    def kernels(self, variant: str) -> tuple[int, float]:
        """The kernels of a call and their seconds; recorded once."""
        if variant not in self._kernels:
            self._kernels[variant] = kernels(self.device, self.functions[variant])
        return self._kernels[variant]

    def median(self, variant: str) -> float:
        """Median seconds of a variant."""
        return statistics.median(self.times[variant])

    def _error(self, *variants: str) -> str:
        return "; ".join(f"{variant}: {self.errors[variant]}" for variant in variants if variant in self.errors)


def measure(makers: Mapping[str, Callable[[], Variant]], *, device: torch.device, rounds: int) -> Measured:
    """Peak memory of the first call, then the time of each round; a variant that fails does not stop the others.

    Args:
        makers: name -> function that makes the variant to measure.
        device: of the model.
        rounds: number of rounds.
    """
    found = Measured(device)
    for name, make in makers.items():
        with caught(name, found.errors):
            function = make()
            found.peaks[name] = peak(device, function)
            found.functions[name] = function

    def guarded(name: str) -> Variant:
        def run() -> None:
            if name not in found.errors:
                with caught(name, found.errors):
                    found.functions[name]()

        return run

    guards = {name: guarded(name) for name in found.functions}
    # `interleaved` collects garbage in every round; the models' modules need not be searched each time.
    gc.collect()
    gc.freeze()
    try:
        found.times = interleaved(guards, rounds=rounds, warm=True, clock=clock(device))
    finally:
        gc.unfreeze()
    return found
