"""What a piece of work would hold in memory, found by doing it with tensors that have shapes and no numbers.

The work is the stages' own code: the same modules, the same experts, the same way back. Nothing about a family's layers is
assumed, and nothing is computed: an operation on such a tensor gives the shape of its result. What every operation allocates and
when it is let go of is added up, which gives the peak to the byte; what kernels take inside of themselves is not seen.
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

ANY_NUMBER = 1.0  # what a number reads as where there is none: a loss is finite, a step goes on


def as_fake_tensors(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Put a model of the meta device on the CPU, in place, without numbers.

    Kernels, autocast and attention choose by the device, so that one without kernels would take other ways than the work does.

    Args:
        model: of the meta device.
        dtype: of its floating-point weights.
    """
    mode, made = FakeTensorMode(allow_non_fake_inputs=True), {}
    for module in model.modules():
        tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for own in tables:
            for name, tensor in own.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:  # a weight that two modules share stays one
                    with mode:
                        kind = dtype if tensor.is_floating_point() else tensor.dtype
                        new = torch.empty(tensor.shape, dtype=kind, device="cpu")
                    made[id(tensor)] = nn.Parameter(new, False) if isinstance(tensor, nn.Parameter) else new
                own[name] = made[id(tensor)]
    return model


class _Watch(TorchDispatchMode):
    """Adds up the storages of what operations give, as long as they live.

    Attributes:
        now: bytes alive.
        peak: the most that were alive at once.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.now = self.peak = 0
        # Views of a weight are not another weight.
        self._sizes = {t.untyped_storage()._cdata: 0 for t in (*model.parameters(), *model.buffers())}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        if args and isinstance(args[0], FakeTensor):
            if func is torch.ops.aten._local_scalar_dense.default:
                return ANY_NUMBER
            if func is torch.ops.aten.index.Tensor:
                args = (args[0], _as_places(args[1]))
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


def _as_places(indices: Any) -> list[Any]:
    """Masks with numbers in them as the places that they mark, which say how many there are."""
    places: list[Any] = []
    for index in indices:
        masked = index is not None and index.dtype == torch.bool and not isinstance(index, FakeTensor)
        places += index.nonzero().unbind(1) if masked else [index]
    return places


def peak_bytes(model: nn.Module, work: Callable[[], object]) -> int:
    """The most bytes that a piece of work holds at once, beside the model's weights.

    Args:
        model: of `hollow`.
        work: anything that computes with it; it gets ANY_NUMBER wherever it looks at a number.
    """
    watch = _Watch(model)
    with watch:
        work()
    return watch.peak


def held_bytes(model: nn.Module) -> int:
    """Bytes of a model's weights and buffers, shared ones once."""
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return sum(t.numel() * t.element_size() for t in tensors.values())
