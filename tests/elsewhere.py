"""A second device without the hardware: its tensors compute with true numbers and refuse to meet those of the CPU.

torch has a device `meta`, whose tensors hold nothing. Inside `elsewhere()`, tensors that are made there or sent there hold
numbers after all (each wraps a tensor of the CPU), and an operation that is given tensors of both devices is an error, as
it is on CUDA, unless the other one is a single number. So a tensor that was made in the wrong place is found where it is used.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

ELSEWHERE = torch.device("meta")
COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}
LOOKS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default}


class There(torch.Tensor):
    """A tensor of the second device.

    Attributes:
        held: the tensor of the CPU that has its numbers.
        looks: how often a number was asked for, of all tensors: what a GPU would have been waited for.
    """

    looks = 0

    @staticmethod
    def __new__(cls, held: torch.Tensor):
        place = (held.size(), held.stride(), held.storage_offset())
        made = torch.Tensor._make_wrapper_subclass(cls, *place, dtype=held.dtype, device=ELSEWHERE)
        made.held = held
        return made

    @property
    def data(self):
        return self.detach()

    @data.setter
    def data(self, value):
        torch.Tensor.data.__set__(self, value)
        self.held = value.held

    def tolist(self):
        There.looks += 1
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        strangers = [t for t in tensors(args, kwargs) if not isinstance(t, There) and t.dim() > 0]
        if strangers and function not in COPIES:
            raise RuntimeError(f"{function} is given tensors of the CPU, too: {[tuple(t.shape) for t in strangers]}")
        goes = torch.device(kwargs.pop("device", None) or ELSEWHERE)
        There.looks += function in LOOKS or goes != ELSEWHERE
        held_args, held_kwargs = tree_map_only(There, lambda t: t.held, (args, kwargs))
        out = function(*held_args, **held_kwargs)
        if goes != ELSEWHERE:
            return out
        return return_and_correct_aliasing(function, args, kwargs, tree_map_only(torch.Tensor, There, out))


def tensors(*given: object) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(given) if isinstance(leaf, torch.Tensor)]


def is_elsewhere(kwargs: dict) -> bool:
    return torch.device(kwargs.get("device") or "cpu") == ELSEWHERE


class _Made(TorchDispatchMode):
    """What is made on the second device, or sent there from the CPU, is there."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if not is_elsewhere(kwargs) or any(isinstance(t, There) for t in tensors(args, kwargs)):
            return function(*args, **kwargs)
        return tree_map_only(torch.Tensor, There, function(*args, **kwargs | {"device": torch.device("cpu")}))


class _Written(TorchFunctionMode):
    """`torch.tensor` makes its tensor where no dispatch sees it; here it is made on the CPU and sent."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function is not torch.tensor or not is_elsewhere(kwargs):
            return function(*args, **kwargs)
        return function(*args, **kwargs | {"device": None}).to(ELSEWHERE)


@contextmanager
def elsewhere() -> Iterator[torch.device]:
    """Inside the block the second device is there."""
    with _Made(), _Written():
        yield ELSEWHERE
