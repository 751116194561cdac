"""Numbers that are read from the device later, so that nothing waits for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import torch


class PendingReads:
    """Tensors on their way to the CPU, in order.

    On CUDA a copy is started at once and read later: reading a number waits until the device has computed it, and the device
    would idle until the next work arrives.

    Args:
        device: of the tensors.
        late: read them later; otherwise, and on other devices, `take` reads every tensor.
    """

    def __init__(self, device: torch.device, *, late: bool) -> None:
        self._late = late and device.type == "cuda"
        self._waiting: deque[tuple[torch.Tensor, torch.cuda.Event | None, Any]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, values: torch.Tensor, about: Any) -> None:
        """Start to read a tensor [count]; `about` is returned with its numbers."""
        if not self._late:
            self._waiting.append((values, None, about))
            return
        copy = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        copy.copy_(values, non_blocking=True)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(values.device))
        self._waiting.append((copy, event, about))

    def take(self, leave: int) -> Iterator[tuple[list[float], Any]]:
        """The numbers that are due, in order, with what belongs to them.

        Args:
            leave: number of the latest tensors that may stay on their way.
        """
        while len(self._waiting) > (leave if self._late else 0):
            values, event, about = self._waiting.popleft()
            if event is not None:
                event.synchronize()
            yield values.tolist(), about
