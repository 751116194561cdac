"""A module's input and its output's gradient, observed in a backward pass; products, sums and norms of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch

from dmole_cli.backbones.image_layouts import spread

Observer = Callable[[torch.Tensor, torch.Tensor], None]


class Parts:
    """The rows of each part of a pass (a batch, or a sample) in a module's input, or in the gradient of its output.

    Args:
        samples: part of each sample, ascending.
        rows: modality -> sample index of each row of that tower, ascending, where rows are not samples; on the CPU.
    """

    def __init__(self, samples: torch.Tensor, rows: Mapping[str, torch.Tensor]) -> None:
        self.count = int(samples[-1]) + 1
        self._samples, self._rows = samples, rows
        self._sizes: dict[tuple, tuple[list[int], bool]] = {}

    def split(self, x: torch.Tensor, modality: str) -> Sequence[torch.Tensor]:
        """The rows of each part."""
        if self.count == 1:
            return (x,)
        key = (modality, *x.shape[:-1])
        if key not in self._sizes:
            owners = self._samples[self._rows[modality]] if modality in self._rows else self._samples
            own, packed = spread(owners, x, per_sample=modality not in self._rows)
            self._sizes[key] = torch.bincount(own, minlength=self.count).tolist(), packed
        sizes, packed = self._sizes[key]
        return (x[0] if packed else x).split(sizes)


def weight_gradient(grad: torch.Tensor, x: torch.Tensor, module: Any) -> torch.Tensor:
    """g^T x [out, in] in float32, of g [tokens, out] and x [tokens, in]; in half precision, only the sums are in float32."""
    if not module.weight.is_floating_point():  # quantised: the gradient of the values that the weight stands for
        return grad.float().t() @ x.float()
    x = x.to(grad.device, grad.dtype)  # autocast converts the input
    if grad.is_cuda and grad.dtype != torch.float32 and _sums_in_float32(grad.device, grad.dtype):
        return torch.mm(grad.t(), x, out_dtype=torch.float32)
    return (grad.t() @ x).float()


@cache
def _sums_in_float32(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether products in half precision can be returned in float32, which PyTorch has for some devices."""
    one = torch.ones(16, 16, device=device, dtype=dtype)
    try:
        torch.mm(one, one, out_dtype=torch.float32)
    except (RuntimeError, TypeError):
        return False
    return True


def _by_device(tensors: Sequence[torch.Tensor]) -> list[list[int]]:
    """Indices of the tensors of each device; a model may be spread over several."""
    found: dict[torch.device, list[int]] = {}
    for index, tensor in enumerate(tensors):
        found.setdefault(tensor.device, []).append(index)
    return list(found.values())


def norms_of(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The norm of each tensor (scalars); on a GPU, a few kernels for all of them."""
    norms = list(tensors)
    for indices in _by_device(tensors):
        for index, norm in zip(indices, torch._foreach_norm([tensors[i] for i in indices]), strict=True):
            norms[index] = norm
    return norms


def add_each(sums: Sequence[torch.Tensor], more: Sequence[torch.Tensor]) -> None:
    """Add a tensor to each of others, in place; on a GPU, a few kernels for all of them."""
    for indices in _by_device(sums):
        torch._foreach_add_([sums[i] for i in indices], [more[i] for i in indices])


def numbers(values: Sequence[torch.Tensor]) -> list[float]:
    """Scalars on any devices as numbers, by one transfer for all."""
    return together(values).tolist()


def together(values: Sequence[torch.Tensor]) -> torch.Tensor:
    """Stack values of all devices on that of the first one; empty without values."""
    return torch.stack([value.to(values[0].device) for value in values]) if values else torch.empty(0)


def observed(
    output: torch.Tensor, x: torch.Tensor, observer: Observer, *, anchor: torch.Tensor | None = None
) -> torch.Tensor:
    """The output of a module, whose backward pass calls `observer(input of the module, gradient of its output)`.

    Args:
        output: of the module.
        x: its input.
        observer: called in every backward pass through the result.
        anchor: requires gradients, so that the result does where the output does not; it gets none.
    """
    return _ObserveBackward.apply(output, x, observer, anchor)


class _ObserveBackward(torch.autograd.Function):
    """Identity; the module's input is saved with `save_for_backward`, so that activation checkpointing recomputes it."""

    @staticmethod
    def forward(ctx, output: torch.Tensor, x: torch.Tensor, observer: Observer, anchor: torch.Tensor | None):
        ctx.save_for_backward(x)
        ctx.observer = observer
        # Some models change the outputs for flattened tokens in place, which a view would not allow.
        return output.clone() if output.dim() == 2 else output.view_as(output)

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        ctx.observer(ctx.saved_tensors[0], grad)
        return grad if ctx.needs_input_grad[0] else None, None, None, None
