"""Peak memory of a computation, found by running it on FakeTensors.

The real code runs: the same modules, experts and backward pass, for any family. Nothing is computed, because an operation on
FakeTensors returns only the shape of its result. Adding up what every operation allocates and frees gives the peak to the
byte, without the workspaces inside kernels.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

ITEM = 1.0  # value of `tensor.item()` on a FakeTensor: losses are finite, and the computation continues


def as_fake_tensors(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Replace a model's meta tensors by FakeTensors of the CPU, in place.

    Kernels, autocast and attention implementations depend on the device, so the meta device would take other code paths.

    Args:
        model: model on the meta device.
        dtype: type of its floating-point weights.
    """
    mode, made = FakeTensorMode(allow_non_fake_inputs=True), {}
    for module in model.modules():
        tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for own in tables:
            for name, tensor in own.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:  # shared weights stay shared
                    with mode:
                        kind = dtype if tensor.is_floating_point() else tensor.dtype
                        new = torch.empty(tensor.shape, dtype=kind, device="cpu")
                    made[id(tensor)] = nn.Parameter(new, False) if isinstance(tensor, nn.Parameter) else new
                own[name] = made[id(tensor)]
    return model


def fake_mode(model: nn.Module) -> FakeTensorMode:
    """The mode of a model of `as_fake_tensors`; tensors created inside it can meet the model's."""
    parameter: Any = next(model.parameters())
    return parameter.fake_mode


class _StorageCounter(TorchDispatchMode):
    """Counts the bytes of the storages that operations return, as long as they live.

    Attributes:
        now: bytes alive.
        peak: maximum of `now`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.now = self.peak = 0
        # Views of weights share their storages, which count nothing here.
        self._sizes = {t.untyped_storage()._cdata: 0 for t in (*model.parameters(), *model.buffers())}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        if args and isinstance(args[0], FakeTensor):
            if func is torch.ops.aten._local_scalar_dense.default:
                return ITEM
            if func is torch.ops.aten.index.Tensor:
                args = (args[0], _as_positions(args[1]))
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)


def _as_positions(indices: Any) -> list[Any]:
    """Replace real boolean masks by the positions of their true values, so that the size of the result is known."""
    positions: list[Any] = []
    for index in indices:
        masked = index is not None and index.dtype == torch.bool and not isinstance(index, FakeTensor)
        positions += index.nonzero().unbind(1) if masked else [index]
    return positions


def peak_bytes(model: nn.Module, work: Callable[[], object]) -> int:
    """Peak memory of a computation in bytes, without the model's weights.

    Args:
        model: the model that `work` uses; of `as_fake_tensors`, or a real one.
        work: any computation; with FakeTensors, `tensor.item()` returns ITEM.
    """
    counter = _StorageCounter(model)
    with counter:
        work()
    return counter.peak


def held_bytes(model: nn.Module) -> int:
    """Bytes of a model's weights and buffers; shared ones count once."""
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return sum(t.numel() * t.element_size() for t in tensors.values())
