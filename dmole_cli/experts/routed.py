"""Routed LoRA experts: every sample of a batch passes through exactly its own set of them.

y = W x + sum over the sample's experts e at this site of (alpha / rank) B_e A_e x      (D-MoLE, arXiv 2506.11672, section 4.1)

The experts hang on the backbone's own linear modules as forward hooks: the module tree, its names and its weights stay
what they were, and whatever computes W x (fused projections, quantised weights) is called as it is. A route plan is made
once per batch: per site, the A and B of the experts that any sample of the batch uses are stacked, and a gate [row, rank]
switches off for each sample what is not its own. One pair of matrix products then serves the whole batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F


@dataclass
class Expert:
    """The matrices of one expert.

    Attributes:
        sites: site -> (A [rank, in], B [out, rank]), float32.
        scale: alpha / rank.
        trainable: whether A and B take gradients.
    """

    sites: dict[str, tuple[torch.Tensor, torch.Tensor]]
    scale: float
    trainable: bool = False

    def parameters(self) -> Iterator[torch.Tensor]:
        """A and B of every site, in a fixed order."""
        for site in sorted(self.sites):
            yield from self.sites[site]


def new_expert(shapes: Mapping[str, tuple[int, int, int]], *, scale: float, generator: torch.Generator) -> Expert:
    """Make an untrained expert: A Kaiming-uniform, B zero, so that it changes nothing yet.

    Args:
        shapes: site -> (rank, in_features, out_features).
        scale: alpha / rank.
        generator: source of randomness; sites are drawn in the order of `shapes`.
    """
    sites = {}
    for site, (rank, width_in, width_out) in shapes.items():
        a = torch.empty(rank, width_in)
        nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=generator)
        sites[site] = (a.requires_grad_(), torch.zeros(width_out, rank, requires_grad=True))
    return Expert(sites, scale, trainable=True)


class _AddLowRank(torch.autograd.Function):
    """base + ((x A^T) * gate) B^T in place on `base`, keeping nothing of the output's size for the backward pass."""

    @staticmethod
    def forward(ctx, base, x, a, b, gate):
        low = F.linear(x, a).mul_(gate)
        base.view(-1, base.shape[-1]).addmm_(low.view(-1, low.shape[-1]), b.t())
        ctx.mark_dirty(base)
        ctx.save_for_backward(x, a, b, gate, low)
        return base

    @staticmethod
    def backward(ctx, grad):
        x, a, b, gate, low = ctx.saved_tensors
        flat = grad.reshape(-1, grad.shape[-1])
        inner = (flat @ b).view(low.shape).mul_(gate)
        inner_flat = inner.view(-1, inner.shape[-1])
        grad_x = F.linear(inner, a.t()) if ctx.needs_input_grad[1] else None
        grad_a = inner_flat.t() @ x.reshape(-1, x.shape[-1]) if ctx.needs_input_grad[2] else None
        grad_b = flat.t() @ low.view(-1, low.shape[-1]) if ctx.needs_input_grad[3] else None
        return grad, grad_x, grad_a, grad_b, None


@dataclass
class _SitePlan:
    """What one site needs for one batch: stacked A [k, in], B [out, k], gate [samples, k] times the scales."""

    a: torch.Tensor
    b: torch.Tensor
    gate: torch.Tensor
    modality: str


class RoutedExperts:
    """The experts attached to one backbone, and the route plan of the batch at hand.

    Args:
        model: the backbone; it is not changed, only hooked.
        modality_of: gives `vision` or `language` for a site.
        dropout: probability of dropping an input feature of the experts while training; one mask is shared by all
            experts of a site (the reference draws one per expert, which makes it the dearest part of the layer).
    """

    def __init__(self, model: nn.Module, modality_of: Callable[[str], str], *, dropout: float = 0.0) -> None:
        self.model, self.modality_of, self.dropout = model, modality_of, dropout
        self.experts: dict[str, Expert] = {}
        self._hooks: dict[str, torch.utils.hooks.RemovableHandle] = {}
        self._plans: dict[str, _SitePlan] = {}
        self._rows: Mapping[str, torch.Tensor | None] = {}

    def add(self, name: str, expert: Expert) -> None:
        """Attach an expert; it does nothing until a batch is routed to it."""
        self.experts[name] = expert
        for site in expert.sites:
            if site not in self._hooks:
                self._hooks[site] = self.model.get_submodule(site).register_forward_hook(self._hook(site))

    def close(self) -> None:
        """Detach everything."""
        for hook in self._hooks.values():
            hook.remove()
        self._hooks.clear()
        self.experts.clear()

    @contextmanager
    def route(
        self,
        sets: Sequence[Iterable[str]],
        *,
        rows: Mapping[str, torch.Tensor | None] | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Iterator[None]:
        """Route a batch: inside the block, sample i passes through the experts `sets[i]`.

        Args:
            sets: names of the experts of each sample; any number, also none.
            rows: modality -> sample index of each row of that tower's tensors [rows], where a row is not a sample (a tile
                or an image of several); a backward pass must run inside the block too if activations are recomputed.
            device: of the backbone.
            dtype: of its activations; experts stay float32 and are cast for the products.
        """
        self._plans = self._plan([tuple(s) for s in sets], device=device, dtype=dtype)
        self._rows = rows or {}
        try:
            yield
        finally:
            self._plans, self._rows = {}, {}

    def keep(self, samples: torch.Tensor) -> None:
        """Go on with these samples [indices] of the routed batch alone, as decoding does when answers have ended.

        Only towers whose rows are samples run from here on; pictures were looked at before the first answer ended.
        """
        gates = {id(plan.gate): plan.gate for plan in self._plans.values()}
        kept = {key: gate[samples] for key, gate in gates.items()}
        for plan in self._plans.values():
            plan.gate = kept[id(plan.gate)]

    def _plan(
        self, sets: list[tuple[str, ...]], *, device: torch.device | str, dtype: torch.dtype
    ) -> dict[str, _SitePlan]:
        used = [name for name in self.experts if any(name in s for s in sets)]
        chosen = torch.tensor([[float(name in s) for name in used] for s in sets], device=device)
        plans = {}
        # Sites with the same experts at the same ranks share one gate.
        gates: dict[tuple[tuple[int, int], ...], torch.Tensor] = {}
        for site in self._hooks:
            here = [(i, self.experts[name]) for i, name in enumerate(used) if site in self.experts[name].sites]
            if not here:
                continue
            pairs = [expert.sites[site] for _, expert in here]
            a = pairs[0][0] if len(pairs) == 1 else torch.cat([p[0] for p in pairs])
            b = pairs[0][1] if len(pairs) == 1 else torch.cat([p[1] for p in pairs], dim=1)
            ranks = tuple((i, len(pair[0])) for (i, _), pair in zip(here, pairs, strict=True))
            if ranks not in gates:
                scaled = [chosen[:, i : i + 1].expand(-1, rank) * self.experts[used[i]].scale for i, rank in ranks]
                gates[ranks] = torch.cat(scaled, dim=1).to(dtype)
            plans[site] = _SitePlan(a.to(device, dtype), b.to(device, dtype), gates[ranks], self.modality_of(site))
        return plans

    def _hook(self, site: str):
        def add_experts(module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
            plan = self._plans.get(site)
            if plan is None:
                return output
            x = args[0]
            if self.dropout and torch.is_grad_enabled():
                x = F.dropout(x, self.dropout)
            rows = self._rows.get(plan.modality)
            gate = plan.gate if rows is None else plan.gate[rows]
            gate = gate.view(gate.shape[0], *([1] * (x.dim() - 2)), gate.shape[1])
            base = output if output.is_contiguous() else output.contiguous()
            return _AddLowRank.apply(base, x, plan.a, plan.b, gate)

        return add_experts
