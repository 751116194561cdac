"""The low-rank additions of sites that share an input: W x + ((x A^T) * scales) B^T, with a backward pass written by hand."""

from __future__ import annotations

import itertools

import torch
from torch import nn
from torch.nn import functional as F

from dmole_cli.experts.expert import MatrixGradients
from dmole_cli.experts.routing_plan import FusedWeights, GroupPlan, Stack


class RoutedLinears(torch.autograd.Function):
    """Outputs of frozen linear layers that share an input x [rows, ..., in], with their experts added in place.

    One product with the stacked A serves all of them. The backward pass sums all terms of the input's gradient in one buffer,
    where autograd would need a second one of the input's size; nothing of an output's size is saved for it. Only the matrices
    that train get gradients, not the whole stack.

    Autograd would be as fast on the CPU (docs/performance.md), but it sums the terms in another order, and trained experts would
    have other bits; on a GPU it launches more kernels.
    """

    @staticmethod
    def forward(ctx, x, plan, modules, *leaves):
        """Give an output for each module; `leaves` are A and B of `plan.trained`, so that autograd knows of them."""
        scales = plan.scales.like(x, plan.columns)
        outputs, low = compute(x, plan, modules, scales)
        ctx.plan, ctx.modules, ctx.scales = plan, modules, scales
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*(x, low) if leaves else ())
        ctx.shape = x.shape
        return tuple(outputs)

    @staticmethod
    def backward(ctx, *grads):
        """Gradients of x and of the matrices that train, from those of the outputs [rows, ..., out]."""
        plan, stack = ctx.plan, ctx.plan.stack
        flat = [None if grad is None else grad.flatten(0, -2) for grad in grads]
        some = next((grad for grad in flat if grad is not None), None)
        if some is None:
            return None, None, None, *[None] * (2 * len(plan.trained))
        inner = _before_b(flat, some, plan)
        inner.view(*ctx.shape[:-1], inner.shape[-1]).mul_(ctx.scales)
        grad_x = None
        if ctx.needs_input_grad[0]:
            terms = [(grad, module.weight) for grad, module in zip(flat, ctx.modules, strict=True) if grad is not None]
            grad_x = terms[0][0] @ terms[0][1]
            for term in (*terms[1:], (inner, stack.a)):
                grad_x.addmm_(*term)
            grad_x = grad_x.view(ctx.shape)
        if not plan.trained:
            return grad_x, None, None
        x, low = (tensor.flatten(0, -2) for tensor in ctx.saved_tensors)  # unpacked once, for activation checkpointing
        matrices: list[torch.Tensor | None] = []
        for own in plan.trained:
            grad = flat[own.site]
            matrices += [None, None] if grad is None else _gradients(own, inner, x, low, grad)
        return grad_x, None, None, *matrices


def _before_b(grads, some: torch.Tensor, plan: GroupPlan) -> torch.Tensor:
    """Gradients of the scaled x A^T [tokens, ranks]; `some` is one of the outputs' gradients [tokens, out] that is not None."""
    stack = plan.stack
    if len(grads) == 1:
        return some @ stack.b[0].t()
    inner = some.new_empty(len(some), len(stack.a))
    for grad, b, ranks in zip(grads, stack.b, stack.ranks, strict=True):
        if grad is None:
            inner[:, ranks] = 0
        else:
            torch.mm(grad, b.t(), out=inner[:, ranks])
    return inner


def _gradients(own, inner: torch.Tensor, x: torch.Tensor, low: torch.Tensor, grad: torch.Tensor) -> list:
    """Gradients of A and B, unless they have been written to where `own.gradients` keeps them."""
    sink: MatrixGradients | None = own.gradients
    a, b = inner[:, own.ranks].t(), low[:, own.ranks].t()
    if sink is None or sink.a.dtype != inner.dtype or sink.a.device != inner.device:
        return [(a @ x).to(own.a.device), (b @ grad).t().to(own.b.device)]
    if sink.reached:
        sink.a.addmm_(a, x)
        sink.b.addmm_(b, grad)
    else:
        torch.mm(a, x, out=sink.a)
        torch.mm(b, grad, out=sink.b)
        sink.reached = True
    return [None, None]


def compute(
    x: torch.Tensor, plan: GroupPlan, modules: list[nn.Linear], scales: torch.Tensor
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The outputs of linear modules [rows, ..., out] with their experts, and (x A^T) * scales [rows, ..., ranks]."""
    stack = plan.stack
    low = F.linear(x, stack.a).mul_(scales)
    flat, outputs = low.flatten(0, -2), []
    for module, b, ranks in zip(modules, stack.b, stack.ranks, strict=True):
        output = F.linear(x, module.weight, module.bias).contiguous()
        output.view(-1, output.shape[-1]).addmm_(flat[:, ranks], b)
        outputs.append(output)
    return outputs, low


@torch.no_grad()
def fused_weights(stack: Stack, modules: list[nn.Linear]) -> FusedWeights:
    """Fuse a stack with the weights of its modules, which become views of the fused ones: they are not held twice."""
    ends = [0, *itertools.accumulate(module.out_features for module in modules)]
    outputs, total, ranks = [slice(*pair) for pair in itertools.pairwise(ends)], ends[-1], len(stack.a)
    weight = stack.a.new_zeros(total + ranks + -ranks % 8, stack.a.shape[1])
    weight[total : total + ranks] = stack.a
    biases = [module.bias for module in modules]
    bias = None if all(own is None for own in biases) else stack.a.new_zeros(len(weight))
    b = stack.a.new_zeros(ranks, total)
    for module, own, rows, part in zip(modules, stack.b, stack.ranks, outputs, strict=True):
        weight[part].copy_(module.weight)
        module.weight.data = weight[part]
        b[rows, part] = own
        if bias is not None and module.bias is not None:
            bias[part] = module.bias
    return FusedWeights(weight, bias, b, outputs)


def compute_fused(
    x: torch.Tensor, plan: GroupPlan, modules: list[nn.Linear], scales: torch.Tensor
) -> list[torch.Tensor]:
    """As `compute`, with a product for W and A, and one for B: a decoding step is bound by the number of its kernels.

    The outputs are views of one tensor.
    """
    stack = plan.stack
    if stack.fused is None:
        stack.fused = fused_weights(stack, modules)
    fused, ranks = stack.fused, len(stack.a)
    total = fused.b.shape[1]
    every = F.linear(x, fused.weight, fused.bias)  # [rows, ..., outputs + ranks]
    low = every[..., total : total + ranks] * scales
    every.view(-1, every.shape[-1])[:, :total].addmm_(low.view(-1, ranks), fused.b)
    return [every[..., part] for part in fused.outputs]


def output_of(site: str, x: torch.Tensor, plan: GroupPlan, modules: list[nn.Linear]) -> torch.Tensor:
    """The output of one site; those of the group's other sites are computed with it, and given when these are called with x.

    Args:
        site: module path.
        x: its input.
        plan: of the group.
        modules: of the group's sites, in their order.
    """
    if plan.ready is not None and plan.ready[0] is x and site in plan.ready[1]:
        outputs = plan.ready[1]
    else:
        if torch.is_grad_enabled():
            leaves = [leaf for own in plan.trained for leaf in (own.a, own.b)]
            found = RoutedLinears.apply(x, plan, modules, *leaves)
        elif plan.fuses:
            found = compute_fused(x, plan, modules, plan.scales.like(x, plan.columns))
        else:
            found, _ = compute(x, plan, modules, plan.scales.like(x, plan.columns))
        outputs = dict(zip(plan.stack.sites, found, strict=True))
        plan.ready = (x, outputs)
    output = outputs.pop(site)
    if not outputs:
        plan.ready = None
    return output


class LowRankAddition(torch.autograd.Function):
    """base + ((x A^T) * scales) B^T, in place on `base`; saves nothing of the output's size for backward.

    For the modules that compute `base` in a way of their own: quantised, divided among devices, or observed by others.
    """

    @staticmethod
    def forward(ctx, base, x, a, b, scales, *trained):
        """Add the experts to `base`; `trained` are A and B of the trainable ones, which are the first in the stack."""
        low = add_in_place(base, x, a, b, scales)
        ctx.mark_dirty(base)
        ctx.trained = [(len(matrix), matrix.device) for matrix in trained[::2]]
        ranks = sum(rank for rank, _ in ctx.trained)
        saved = (x, low[..., :ranks].contiguous()) if trained else (None, None)
        ctx.save_for_backward(*saved, a, b, scales)
        return base

    @staticmethod
    def backward(ctx, grad):
        """Gradients of `base`, of `x` and of each matrix in `trained`, from that of the output [rows, ..., out]."""
        x, low, a, b, scales = ctx.saved_tensors
        flat = grad.flatten(0, -2)  # [tokens, out]
        inner = (flat @ b.t()).view(*grad.shape[:-1], len(b)).mul_(scales).flatten(0, -2)  # [tokens, ranks]
        grad_x = (inner @ a).view(*grad.shape[:-1], a.shape[1]) if ctx.needs_input_grad[1] else None
        matrices, start = [], 0
        for rank, device in ctx.trained:
            own = slice(start, start := start + rank)
            matrices += [(inner[:, own].t() @ x.flatten(0, -2)).to(device)]
            matrices += [(low.flatten(0, -2)[:, own].t() @ flat).t().to(device)]
        return grad, grad_x, None, None, None, *matrices


def add_in_place(
    base: torch.Tensor, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scales: torch.Tensor
) -> torch.Tensor:
    """Add the experts to `base` [rows, ..., out] in place; gives (x A^T) * scales [rows, ..., ranks]."""
    low = F.linear(x, a).mul_(scales)
    base.view(-1, base.shape[-1]).addmm_(low.view(-1, low.shape[-1]), b)
    return low


def add_experts(
    module: nn.Module, x: torch.Tensor, output: torch.Tensor, plan: GroupPlan, site: str, *, dropout: float = 0.0
) -> torch.Tensor:
    """Add the active experts of a site to its module's output.

    Args:
        module: the host.
        x: its input [rows, ..., in].
        output: what the module has computed of x [rows, ..., out]; is overwritten where that is safe.
        plan: of the site's group.
        site: path of the module.
        dropout: probability of dropping an input feature of the experts while gradients are computed.
    """
    index, first = plan.stack.sites.index(site), plan.columns.start
    own = plan.stack.ranks[index]
    a, b = plan.stack.a[own], plan.stack.b[index]
    scales = plan.scales.like(output, slice(first + own.start, first + own.stop))
    base = output if output.is_contiguous() else output.contiguous()
    if type(module) is not nn.Linear and base._is_view():
        # A view that a custom autograd function returned, as quantised modules do, must not be changed in place.
        base = base.clone()
    if a.dtype != base.dtype:  # under autocast, an output's dtype is not that of the weights
        a, b, scales = a.to(base.dtype), b.to(base.dtype), scales.to(base.dtype)
    if not torch.is_grad_enabled():
        add_in_place(base, x.to(base.dtype), a, b, scales)
        return base
    if dropout:
        x = F.dropout(x, dropout)
    leaves = [leaf for found in plan.trained if found.site == index for leaf in (found.a, found.b)]
    return LowRankAddition.apply(base, x.to(base.dtype), a, b, scales, *leaves)
