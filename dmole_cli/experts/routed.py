"""Routed LoRA experts: every sample of a batch passes through exactly its own set of them.

y = W x + sum over the sample's experts e at this site of (alpha / rank) B_e A_e x      (D-MoLE, arXiv 2506.11672, section 4.1)

The experts hang on the backbone's own linear modules as forward hooks: the module tree, its names and its weights stay
what they were, and whatever computes W x (fused projections, quantised weights) is called as it is. A route plan is made
once per batch: per site, the A and B of the experts that any sample of the batch uses are stacked, and a gate [row, rank]
switches off for each sample what is not its own. One pair of matrix products then serves the whole batch, and the plan
serves every pass of the batch, all steps of its decoding among them. A site where no sample has an expert is not in the
plan: its module is the plain linear.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from dmole_cli.errors import DmoleError


@dataclass
class Expert:
    """The matrices of one expert.

    Attributes:
        sites: site -> (A [rank, in], B [out, rank]), float32.
        scale: alpha / rank.
        trainable: whether A and B take gradients.
        gates: site -> [parts, in] where the expert is a dense mixture of as many parts: the ranks of A and B belong to them in
            turn, equally many each, and every token weighs them by a softmax over its own gate values.
    """

    sites: dict[str, tuple[torch.Tensor, torch.Tensor]]
    scale: float
    trainable: bool = False
    gates: dict[str, torch.Tensor] = field(default_factory=dict)

    def parameters(self) -> Iterator[torch.Tensor]:
        """A and B of every site, and its gate if it has one, in a fixed order."""
        for site in sorted(self.sites):
            yield from self.sites[site]
            if site in self.gates:
                yield self.gates[site]


def new_expert(
    shapes: Mapping[str, tuple[int, int, int]],
    *,
    scale: float,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
) -> Expert:
    """Make an untrained expert: A Kaiming-uniform, B zero, so that it changes nothing yet.

    Args:
        shapes: site -> (rank, in_features, out_features).
        scale: alpha / rank.
        generator: source of randomness, of the CPU, so that every device starts from the same numbers; sites are drawn in
            the order of `shapes`.
        device: where it will train.
    """
    sites = {}
    for site, (rank, width_in, width_out) in shapes.items():
        a = torch.empty(rank, width_in)
        nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=generator)
        b = torch.zeros(width_out, rank, device=device)
        sites[site] = (a.to(device).requires_grad_(), b.requires_grad_())
    return Expert(sites, scale, trainable=True)


class _Routed(torch.autograd.Function):
    """base + ((x A^T) * gate) B, in place on `base`, which is W x; nothing of the output's size is kept for the way back.

    Where `weight` is given, `base` comes without its graph and the way back through W is gone here, too: the two parts of
    the input's gradient are then summed in one buffer. Left to two nodes of the graph, they would take a second buffer of
    the input's size and another pass over both. Only the blocks in training get gradients, not all that were stacked.
    """

    @staticmethod
    def forward(ctx, base, x, weight, a, b, gate, *trained):
        low = _add_low_rank(base, x, a, b, gate)
        ctx.mark_dirty(base)
        ctx.trained = [(len(matrix), matrix.device) for matrix in trained[::2]]
        ranks = sum(rank for rank, _ in ctx.trained)
        kept = (x, low[..., :ranks].contiguous()) if trained else (None, None)
        ctx.save_for_backward(*kept, weight, a, b, gate)
        return base

    @staticmethod
    def backward(ctx, grad):
        x, low, weight, a, b, gate = ctx.saved_tensors
        flat = grad.flatten(0, -2)  # [tokens, out]
        inner = (flat @ b.t()).view(*grad.shape[:-1], len(b)).mul_(gate).flatten(0, -2)  # [tokens, ranks]
        grad_x = None
        if ctx.needs_input_grad[1]:
            grad_x = inner @ a if weight is None else (flat @ weight).addmm_(inner, a)
            grad_x = grad_x.view(*grad.shape[:-1], a.shape[1])
        blocks, start = [], 0
        for rank, device in ctx.trained:
            own = slice(start, start := start + rank)
            blocks += [(inner[:, own].t() @ x.flatten(0, -2)).to(device)]
            blocks += [(low.flatten(0, -2)[:, own].t() @ flat).t().to(device)]
        return grad if weight is None else None, grad_x, None, None, None, None, *blocks


def _add_low_rank(base, x, a, b, gate):
    """Add the experts to `base` [rows, ..., out] in place; gives (x A^T) * gate [rows, ..., ranks]."""
    low = F.linear(x, a).mul_(gate)
    base.view(-1, base.shape[-1]).addmm_(low.view(-1, low.shape[-1]), b)
    return low


def _plain_weight(module: nn.Module, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor | None:
    """W of a frozen plain linear that nobody else hooks into; None for every other host."""
    if type(module) is not nn.Linear or len(module._forward_hooks) > 1:
        return None
    if module.weight.requires_grad or (module.bias is not None and module.bias.requires_grad):
        return None
    return module.weight if module.weight.dtype == x.dtype == output.dtype else None


@dataclass
class _Gate:
    """The experts' scales for each row of a tower, 0 for those that are not its sample's.

    Attributes:
        rows: [rows, 1, ranks].
        of_samples: whether its rows are the samples themselves.
    """

    rows: torch.Tensor
    of_samples: bool

    def like(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, 1 ..., ranks], to be multiplied with what comes of x [rows, ..., in]."""
        rows, _, ranks = self.rows.shape
        if rows != len(x):
            message = (
                f"{len(x)} rows pass a site, and the batch has owners for {rows}: the layout of its pictures is unknown"
            )
            raise DmoleError(
                message, "give the family a file in dmole_cli/backbones/ with vision_rows (docs/backbones.md)"
            )
        if x.dim() == 3:
            return self.rows
        return self.rows.view(rows, *([1] * (x.dim() - 2)), ranks)


def _gate(scales: torch.Tensor, rows: torch.Tensor | None) -> _Gate:
    """From the scales of the samples [samples, ranks] and the sample of each row, if rows are not samples."""
    return _Gate((scales if rows is None else scales.index_select(0, rows))[:, None], of_samples=rows is None)


@dataclass
class _SitePlan:
    """What one site needs for one batch.

    Attributes:
        a: stacked A [ranks, in], those in training first; cut off from the graph.
        b: stacked B, transposed [ranks, out]: of a decoding step most of the time goes into reading weights, row after row.
        gate: shared by all sites with the same experts at the same ranks.
        trained: A and B of the experts in training, in their order of the stack.
    """

    a: torch.Tensor
    b: torch.Tensor
    gate: _Gate
    trained: tuple[torch.Tensor, ...]


@dataclass
class _Mixture:
    """A dense mixture at one site for one batch.

    Attributes:
        a: A of all parts [ranks, in]; b: B of all parts [out, ranks]; weigh: the gate [parts, in]. Where they train, they are
            the expert's own tensors, wherever those lie, so that gradients find their way back.
        gate: the scale for each row, 0 where the mixture is not its sample's.
    """

    a: torch.Tensor
    b: torch.Tensor
    weigh: torch.Tensor
    gate: _Gate

    def add_to(self, output: torch.Tensor, x: torch.Tensor, *, dropout: float = 0.0) -> torch.Tensor:
        """Output [rows, ..., out] and what the parts make of x [rows, ..., in], each by its share of the token.

        The gate sees all of x; `dropout` is on what the parts get.
        """
        a, b, weigh = (matrix.to(x.device) for matrix in (self.a, self.b, self.weigh))
        shares = torch.softmax(F.linear(x.float(), weigh.float()), dim=-1) * self.gate.like(output)
        low = F.linear(F.dropout(x, dropout) if dropout else x, a.to(x.dtype))
        low = low * shares.repeat_interleave(len(a) // len(weigh), dim=-1).to(x.dtype)
        return output + F.linear(low, b.to(x.dtype)).to(output.dtype)


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
        self._mixtures: dict[str, list[_Mixture]] = {}
        self._merged: tuple[str, ...] = ()
        self._weights: dict[str, torch.Tensor] = {}
        self._moved: dict[tuple, tuple[torch.Tensor, torch.Tensor]] = {}

    def add(self, name: str, expert: Expert) -> None:
        """Attach an expert; it does nothing until a batch is routed to it."""
        self.experts[name] = expert
        self._moved.clear()
        for site in expert.sites:
            if site not in self._hooks:
                self._hooks[site] = self.model.get_submodule(site).register_forward_hook(self._hook(site))

    @torch.no_grad()
    def merge(self, names: Iterable[str]) -> None:
        """Fold experts into the weights of their hosts, in place of those folded in before; none gives the weights back.

        Exact to single precision; in half precision most of a small product would be rounded away, so those are refused.

        Raises:
            DmoleError: a host is no plain linear in single precision, or an expert is a mixture, which no weight can hold.
        """
        wanted = tuple(names)
        if wanted == self._merged:
            return
        # Before any weight changes, so that a refusal leaves all of them as they are.
        for name in wanted:
            self._require_mergeable(name)
        self._merged = wanted
        for site, weight in self._weights.items():
            self._host(site).weight.copy_(weight)
        self._weights.clear()
        for name in wanted:
            expert = self.experts[name]
            for site, (a, b) in expert.sites.items():
                weight = self._host(site).weight
                self._weights.setdefault(site, weight.clone())
                weight.addmm_(b.to(weight.device), a.to(weight.device), alpha=expert.scale)

    def _require_mergeable(self, name: str) -> None:
        expert = self.experts[name]
        for site in expert.sites:
            host = self._host(site)
            if type(host) is not nn.Linear or host.weight.dtype != torch.float32 or expert.gates:
                message = f"the expert of {name} cannot be merged at {site}"
                raise DmoleError(message, "merging needs plain linear layers in float32 and plain LoRA experts")

    def _host(self, site: str) -> Any:
        return self.model.get_submodule(site)

    def close(self) -> None:
        """Detach everything, and give merged weights back."""
        self.merge(())
        for hook in self._hooks.values():
            hook.remove()
        self._hooks.clear()
        self._moved.clear()
        self.experts.clear()

    @contextmanager
    def route(
        self,
        sets: Sequence[Iterable[str]],
        *,
        rows: Mapping[str, torch.Tensor | None] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Iterator[None]:
        """Route a batch: inside the block, sample i passes through the experts `sets[i]`.

        Args:
            sets: names of the experts of each sample; any number, also none.
            rows: modality -> sample index of each row of that tower's tensors [rows], where a row is not a sample (a tile
                or an image of several); a backward pass must run inside the block too if activations are recomputed.
            device: of the backbone; None for that of its first weight.
            dtype: of its activations; experts stay float32 and are cast for the products. None for that of its first weight.
        """
        before = self._plans, self._mixtures
        weight = next(self.model.parameters())
        place = torch.device(device) if device is not None else weight.device
        self._plans, self._mixtures = self._plan(
            [tuple(s) for s in sets], rows or {}, place, weight.dtype if dtype is None else dtype
        )
        try:
            yield
        finally:
            self._plans, self._mixtures = before

    def keep(self, samples: torch.Tensor) -> None:
        """Go on with these samples [indices] of the routed batch alone, as decoding does when answers have ended.

        Only towers whose rows are samples run from here on; pictures were looked at before the first answer ended.
        """
        for gate in self._gates():
            if gate.of_samples:
                gate.rows = gate.rows[samples]

    @contextmanager
    def narrowed(self, samples: torch.Tensor) -> Iterator[None]:
        """Inside the block, the routed batch is these samples [indices, each any number of times], as for `keep`."""
        before = [(gate, gate.rows) for gate in self._gates()]
        self.keep(samples)
        try:
            yield
        finally:
            for gate, rows in before:
                gate.rows = rows

    def _gates(self) -> list[_Gate]:
        """The gates of the routed batch, each once."""
        gates = [plan.gate for plan in self._plans.values()]
        gates += [mixture.gate for here in self._mixtures.values() for mixture in here]
        return list({id(gate): gate for gate in gates}.values())

    @torch.no_grad()
    def _plan(
        self,
        sets: list[tuple[str, ...]],
        rows: Mapping[str, torch.Tensor | None],
        device: torch.device,
        dtype: torch.dtype,
    ) -> tuple[dict[str, _SitePlan], dict[str, list[_Mixture]]]:
        active = {name for names in sets for name in names}
        used = sorted((n for n in self.experts if n in active), key=lambda n: not self.experts[n].trainable)
        # [samples, experts]: the scale of those that a sample has, 0 for the others.
        scales = torch.tensor([[self.experts[n].scale * (n in s) for n in used] for s in sets])
        plans: dict[str, _SitePlan] = {}
        mixtures: dict[str, list[_Mixture]] = {}
        gates: dict[tuple, _Gate] = {}
        for site in self._hooks:
            here = [name for name in used if site in self.experts[name].sites]
            modality = self.modality_of(site)
            for name in (name for name in here if site in self.experts[name].gates):
                gate = _gate(scales[:, [used.index(name)]].to(device, dtype), rows.get(modality))
                expert = self.experts[name]
                (a, b), weigh = expert.sites[site], expert.gates[site]
                if not expert.trainable:
                    a, b, weigh = a.to(device), b.to(device), weigh.to(device)
                mixtures.setdefault(site, []).append(_Mixture(a, b, weigh, gate))
            here = [name for name in here if site not in self.experts[name].gates]
            if not here:
                continue
            pairs = [self._matrices(name, site, device, dtype) for name in here]
            columns = tuple(used.index(name) for name, (a, _) in zip(here, pairs, strict=True) for _ in range(len(a)))
            key = (columns, modality)
            if key not in gates:
                own = scales[:, columns].to(device, dtype, non_blocking=device.type == "cuda")
                gates[key] = _gate(own, rows.get(modality))
            plans[site] = _SitePlan(
                a=torch.cat([a for a, _ in pairs]) if len(pairs) > 1 else pairs[0][0],
                b=torch.cat([b for _, b in pairs]) if len(pairs) > 1 else pairs[0][1],
                gate=gates[key],
                trained=tuple(t for n in here if self.experts[n].trainable for t in self.experts[n].sites[site]),
            )
        return plans, mixtures

    def _matrices(
        self, name: str, site: str, device: torch.device, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A and the transposed B as the products need them; a frozen expert's are made once, not for every batch."""
        expert, key = self.experts[name], (name, site, device, dtype)
        if key in self._moved:
            return self._moved[key]
        a, b = expert.sites[site]
        pair = a.detach().to(device, dtype), b.detach().to(device, dtype).t().contiguous()
        if not expert.trainable:
            self._moved[key] = pair
        return pair

    def _hook(self, site: str):
        def add_experts(module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
            mixtures = self._mixtures.get(site, ())
            for mixture in mixtures:
                dropped = self.dropout if torch.is_grad_enabled() else 0.0
                output = mixture.add_to(output, args[0], dropout=dropped)
            plan = self._plans.get(site)
            if plan is None:
                return output
            x, a, b, gate = args[0], plan.a, plan.b, plan.gate.like(output)
            base = output if output.is_contiguous() else output.contiguous()
            if type(module) is not nn.Linear and base._is_view():
                base = (
                    base.clone()
                )  # of a function with a way back of its own, as quantised modules have: not to be changed
            if a.dtype != base.dtype:  # under autocast a host answers in a type that its weights do not have
                a, b, gate = a.to(base.dtype), b.to(base.dtype), gate.to(base.dtype)
            if not torch.is_grad_enabled():
                _add_low_rank(base, x.to(base.dtype), a, b, gate)
                return base
            weight = None if self.dropout or mixtures else _plain_weight(module, x, base)
            if weight is not None:
                base = base.detach()
            if self.dropout:
                x = F.dropout(x, self.dropout)
            return _Routed.apply(base, x.to(base.dtype), weight, a, b, gate, *plan.trained)

        return add_experts
