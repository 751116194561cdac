"""CUDA graphs without the hardware: a function's operations are captured once, and replayed on the very same tensors.

As on CUDA, capture changes no tensor, a replay runs no Python of the function, and an operation that would wait for the device
does not support capture. So whatever a step reads from the host, or from a tensor that is made anew, is wrong in its replays.
"""

from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dmole_cli.inference.graphs import Graphs

WAITING = (
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "masked_scatter_backward",
    "_unique",
    "is_nonzero",
    "equal",
    "bincount",
    "repeat_interleave.Tensor",
)


def tensors(*given: object) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(given) if isinstance(leaf, torch.Tensor)]


def waits(function: Any, args: tuple) -> bool:
    """Whether an operation waits for a GPU: its result, or the size of that, is needed on the host."""
    masks = [t for t in tensors(args[1:]) if t.dtype in (torch.bool, torch.uint8)]
    return any(name in str(function) for name in WAITING) or ("aten.index" in str(function) and bool(masks))


class Tape(TorchDispatchMode):
    """Operations with their tensors, and the values that the tensors had before."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple, dict, list[torch.Tensor]]] = []
        self.before: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if waits(function, args):
            raise RuntimeError(f"{function} waits for the device")
        changed = [
            kwargs.get(spec.name, args[place] if place < len(args) else None)
            for place, spec in enumerate(function._schema.arguments)
            if spec.alias_info is not None and spec.alias_info.is_write
        ]
        self.before += [(tensor, tensor.clone()) for tensor in tensors(changed)]
        out = function(*args, **kwargs)
        given = {t.untyped_storage().data_ptr() for t in tensors(args, kwargs)}
        # What shares the memory of an argument is a view, or the argument itself: nothing to write on replay.
        made = [None if t.untyped_storage().data_ptr() in given else t for t in tensors(out)]
        self.calls.append((function, args, kwargs, made))
        return out

    @torch.no_grad()
    def rewind(self) -> None:
        for tensor, values in reversed(self.before):
            tensor.copy_(values)
        self.before.clear()

    @torch.no_grad()
    def replay(self) -> None:
        for function, args, kwargs, made in self.calls:
            for own, new in zip(made, tensors(function(*args, **kwargs)), strict=True):
                if own is not None:
                    own.copy_(new)


class TapeGraphs(Graphs):
    """`Graphs` with tapes."""

    def replay(self, key) -> None:
        self._graphs.move_to_end(key)
        self._graphs[key][0].replay()

    def capture(self, key, function: Callable[[], None], *, alive=None) -> None:
        tape = Tape()
        try:
            # Where a stream is captured, models of transformers leave out what would wait for the device.
            with tape, mock.patch("transformers.utils.import_utils.is_cuda_stream_capturing", lambda: True):
                function()
        finally:
            tape.rewind()
        self._graphs[key] = (tape, alive)
        if len(self._graphs) > self.limit:
            self._graphs.popitem(last=False)

    def clear(self) -> None:
        self._graphs.clear()
