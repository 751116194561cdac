"""What models of transformers compute in a way that waits for the device, computed without waiting.

A CUDA graph cannot capture an operation that waits. The results are the same.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

SWITCH = "TRANSFORMERS_DISABLE_TORCH_CHECK"


class _MaskedScatter(torch.autograd.Function):
    """`Tensor.masked_scatter` for a mask that takes or leaves whole rows of the last dimension.

    Its own backward pass selects by the mask, and so has to know how many elements that are. Here they are as many as the source
    has, whose rows are found in the mask's running sum.
    """

    @staticmethod
    def forward(ctx, target, mask, source):
        ctx.save_for_backward(mask)
        ctx.rows = source.shape
        return _WAITING(target, mask, source)

    @staticmethod
    def backward(ctx, grad):
        (mask,) = ctx.saved_tensors
        rows = mask[..., 0].flatten()
        count = ctx.rows[:-1].numel()
        positions = torch.searchsorted(rows.cumsum(0), torch.arange(1, count + 1, device=rows.device))
        # Rows of the source that the mask has no place for have no gradient; `positions` is behind the end there.
        known = torch.cat([grad.reshape(-1, grad.shape[-1]), grad.new_zeros(1, grad.shape[-1])])
        return grad.masked_fill(mask, 0), None, known.index_select(0, positions).view(ctx.rows)


def _masked_scatter(target: torch.Tensor, mask: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    whole_rows = mask.dim() == target.dim() and (mask.shape[-1] == 1 or mask.stride(-1) == 0)
    if whole_rows and source.dim() > 1 and source.shape[-1] == target.shape[-1]:
        return _MaskedScatter.apply(target, mask, source)
    return _WAITING(target, mask, source)


_WAITING = torch.Tensor.masked_scatter


@contextmanager
def fixed_shapes() -> Iterator[None]:
    """Inside the block, models of transformers compute without waiting for the device, and check no values of tensors.

    Such a check is that of the number of image tokens. The messages of checks are formatted even where these are switched off or
    hold, so a tensor in a message is described, not read.
    """
    formatted, before = torch.Tensor.__format__, os.environ.get(SWITCH)
    torch.Tensor.__format__ = lambda tensor, form: f"tensor of shape {tuple(tensor.shape)}"  # type: ignore[method-assign]
    torch.Tensor.masked_scatter = _masked_scatter  # type: ignore[method-assign, assignment]
    os.environ[SWITCH] = "1"
    try:
        yield
    finally:
        torch.Tensor.__format__ = formatted  # type: ignore[method-assign]
        torch.Tensor.masked_scatter = _WAITING  # type: ignore[method-assign]
        os.environ.pop(SWITCH) if before is None else os.environ.update({SWITCH: before})
