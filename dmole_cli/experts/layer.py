"""The low-rank addition of one site: base + ((x A^T) * scales) B^T, with a backward pass written by hand."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from dmole_cli.backbones.device import is_offloaded
from dmole_cli.experts.routing_plan import SitePlan


class LowRankAddition(torch.autograd.Function):
    """base + ((x A^T) * scales) B^T, in place on `base`, which is W x; saves nothing of the output's size for backward.

    Where `weight` is given, `base` is detached and the backward pass through W is computed here, too: both terms of the
    input's gradient are then summed in one buffer, where autograd would need a second one of the input's size. Only the matrices
    in `trained` get gradients, not the whole stack.

    Autograd would be as fast in a training step (docs/performance.md), but it sums the terms in another order, and trained
    experts would have other bits.
    """

    @staticmethod
    def forward(ctx, base, x, weight, a, b, scales, *trained):
        """Add the experts to `base`; `trained` are A and B of the trainable ones, which are the first in the stack."""
        low = add_in_place(base, x, a, b, scales)
        ctx.mark_dirty(base)
        ctx.trained = [(len(matrix), matrix.device) for matrix in trained[::2]]
        ranks = sum(rank for rank, _ in ctx.trained)
        saved = (x, low[..., :ranks].contiguous()) if trained else (None, None)
        ctx.save_for_backward(*saved, weight, a, b, scales)
        return base

    @staticmethod
    def backward(ctx, grad):
        """Gradients of `base`, of `x` and of each matrix in `trained`, from that of the output [rows, ..., out]."""
        x, low, weight, a, b, scales = ctx.saved_tensors
        flat = grad.flatten(0, -2)  # [tokens, out]
        inner = (flat @ b.t()).view(*grad.shape[:-1], len(b)).mul_(scales).flatten(0, -2)  # [tokens, ranks]
        grad_x = None
        if ctx.needs_input_grad[1]:
            grad_x = inner @ a if weight is None else (flat @ weight).addmm_(inner, a)
            grad_x = grad_x.view(*grad.shape[:-1], a.shape[1])
        matrices, start = [], 0
        for rank, device in ctx.trained:
            own = slice(start, start := start + rank)
            matrices += [(inner[:, own].t() @ x.flatten(0, -2)).to(device)]
            matrices += [(low.flatten(0, -2)[:, own].t() @ flat).t().to(device)]
        return grad if weight is None else None, grad_x, None, None, None, None, *matrices


def add_in_place(
    base: torch.Tensor, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scales: torch.Tensor
) -> torch.Tensor:
    """Add the experts to `base` [rows, ..., out] in place; gives (x A^T) * scales [rows, ..., ranks]."""
    low = F.linear(x, a).mul_(scales)
    base.view(-1, base.shape[-1]).addmm_(low.view(-1, low.shape[-1]), b)
    return low


def add_experts(
    module: nn.Module, x: torch.Tensor, output: torch.Tensor, plan: SitePlan, *, dropout: float = 0.0
) -> torch.Tensor:
    """Add the active experts of a site to its module's output.

    Args:
        module: the host.
        x: its input [rows, ..., in].
        output: what the module has computed of x [rows, ..., out]; is overwritten where that is safe.
        plan: of the site.
        dropout: probability of dropping an input feature of the experts while gradients are computed.
    """
    a, b, scales = plan.a, plan.b, plan.scales.like(output)
    base = output if output.is_contiguous() else output.contiguous()
    if type(module) is not nn.Linear and base._is_view():
        # A view that a custom autograd function returned, as quantised modules do, must not be changed in place.
        base = base.clone()
    if a.dtype != base.dtype:  # under autocast, an output's dtype is not that of the weights
        a, b, scales = a.to(base.dtype), b.to(base.dtype), scales.to(base.dtype)
    if not torch.is_grad_enabled():
        add_in_place(base, x.to(base.dtype), a, b, scales)
        return base
    weight = None if dropout else _plain_weight(module, x, output)
    if weight is not None:
        base = base.detach()
    if dropout:
        x = F.dropout(x, dropout)
    return LowRankAddition.apply(base, x.to(base.dtype), weight, a, b, scales, *plan.trained)


def _plain_weight(module: nn.Module, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor | None:
    """W of a frozen plain linear module with no hook but ours; None for every other host, and for offloaded weights."""
    if type(module) is not nn.Linear or len(module._forward_hooks) > 1 or is_offloaded(module):
        return None
    if module.weight.requires_grad or (module.bias is not None and module.bias.requires_grad):
        return None
    return module.weight if module.weight.dtype == x.dtype == output.dtype else None
