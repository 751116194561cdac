"""How busy a GPU is while other processes use it, by NVIDIA's management library, which the driver brings along."""

from __future__ import annotations

import ctypes
import threading
import time
from dataclasses import dataclass

INTERVAL = 0.1  # seconds between two samples


@dataclass(frozen=True)
class Sample:
    """One sample.

    Attributes:
        time: seconds since the epoch.
        busy: percent of the driver's last sampling period (at most a second) in which a kernel was running.
        used: bytes of memory that all processes use.
    """

    time: float
    busy: int
    used: int


class _Rates(ctypes.Structure):
    _fields_ = [("gpu", ctypes.c_uint), ("memory", ctypes.c_uint)]


class _Memory(ctypes.Structure):
    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


class Utilization:
    """Samples the first GPU in a thread, inside a `with` block.

    Attributes:
        samples: in order of time.
    """

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Utilization:
        """Start.

        Raises:
            RuntimeError: the library refuses.
            OSError: there is no such library.
        """
        self._library = ctypes.CDLL("libnvidia-ml.so.1")
        self._device = ctypes.c_void_p()
        self._call("nvmlInit_v2")
        self._call("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(0), ctypes.byref(self._device))
        self._sample()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()
        self._call("nvmlShutdown")

    def busy(self, start: float, end: float) -> float:
        """Mean share of the time from `start` to `end` (seconds since the epoch) in which a kernel was running, in percent.

        Raises:
            ValueError: there is no sample in that time.
        """
        found = [sample.busy for sample in self.samples if start <= sample.time <= end]
        if not found:
            raise ValueError(f"no sample in {end - start:.1f} seconds")
        return sum(found) / len(found)

    def peak(self, start: float, end: float) -> int:
        """Largest memory from `start` to `end` beyond that of the first sample, in bytes."""
        found = [sample.used for sample in self.samples if start <= sample.time <= end]
        return max(found, default=0) - self.samples[0].used

    def _run(self) -> None:
        while not self._ended.wait(INTERVAL):
            self._sample()

    def _sample(self) -> None:
        rates, memory = _Rates(), _Memory()
        self._call("nvmlDeviceGetUtilizationRates", self._device, ctypes.byref(rates))
        self._call("nvmlDeviceGetMemoryInfo", self._device, ctypes.byref(memory))
        self.samples.append(Sample(time.time(), rates.gpu, memory.used))

    def _call(self, function: str, *arguments: object) -> None:
        if code := getattr(self._library, function)(*arguments):
            raise RuntimeError(f"{function} gave error {code}")
