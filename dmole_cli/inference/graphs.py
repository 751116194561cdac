"""CUDA graphs: a function that is launched many times with the same tensors is captured once, and then replayed.

A replay launches all kernels of the function at once, without Python and without one launch per kernel
(https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs). It reads and writes the very tensors of the capture.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import torch

# Each graph holds some megabytes in the driver; the memory that its kernels work in is shared by all.
LIMIT = 32


class Graphs:
    """Captured functions by key, the least recently used of which is dropped when there are too many.

    Args:
        device: a CUDA device.
        limit: maximum number of graphs.
    """

    def __init__(self, device: torch.device, *, limit: int = LIMIT) -> None:
        self.device, self.limit = device, limit
        self._graphs: OrderedDict[Hashable, tuple[Any, Any]] = OrderedDict()
        self._pool: Any = None
        self._stream: Any = None

    def __contains__(self, key: Hashable) -> bool:
        return key in self._graphs

    def replay(self, key: Hashable) -> None:
        """Launch a captured function."""
        self._graphs.move_to_end(key)
        self._graphs[key][0].replay()

    def capture(self, key: Hashable, function: Callable[[], None], *, alive: Any = None) -> None:
        """Capture a function; its kernels are not run.

        It must have run before, so that libraries have loaded what they need, and it must not wait for the device.

        Args:
            key: for `replay`.
            function: works on tensors that stay where they are.
            alive: kept as long as the graph: whatever holds these tensors.

        Raises:
            RuntimeError: an operation does not support capture.
        """
        if self._pool is None:
            self._pool, self._stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream(self.device)
        graph, before = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self.device)
        self._stream.wait_stream(before)
        try:
            # Other threads may use the device meanwhile, such as those that prepare the next batch.
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                function()
            self._graphs[key] = (graph, alive)
        except Exception as error:
            _end_capture_of_random_numbers(self.device)
            # The end of a failed capture raises an error of its own, which says nothing of the reason.
            raise error.__context__ or error from None
        finally:
            torch.cuda.set_stream(before)  # the context leaves another one where capture has failed
            if not self._graphs:
                self._pool = None
        if len(self._graphs) > self.limit:
            torch.cuda.synchronize(self.device)
            self._graphs.popitem(last=False)

    def clear(self) -> None:
        """Drop all graphs."""
        if self._graphs:
            torch.cuda.synchronize(self.device)
        self._graphs.clear()
        self._pool = None  # memory of a pool without graphs cannot be shared again


def _end_capture_of_random_numbers(device: torch.device) -> None:
    """Give a device's generator a new state: where capture has failed, the old one expects to be captured for ever."""
    generator = torch.cuda.default_generators[device.index or 0]
    fresh = torch.Generator(device=device)
    fresh.manual_seed(generator.initial_seed())
    generator.graphsafe_set_state(fresh)
