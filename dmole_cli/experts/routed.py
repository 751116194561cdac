"""Routed LoRA experts: every sample of a batch passes through exactly its own set of experts.

y = W x + sum over the sample's experts e at this site of (alpha / rank) B_e A_e x      (D-MoLE, arXiv 2506.11672, section 4.1)

A method may weight them: each term then has a factor, which is the sample's own (weighting.py).

The module tree of the backbone, its names and its weights stay unchanged. A plan is made once per batch (routing_plan.py), and
one pair of matrix products per site then serves the whole batch (layer.py). While experts are attached, a frozen linear module in
memory computes its output together with its experts, and with the sites that share its input. At every other module (fused
projections, quantised weights, weights that train), the experts are a forward hook, and whatever computes W x is called as it is.
At a site without an active expert, the module's output is returned as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from dmole_cli.backbones.device import device_of, is_divided
from dmole_cli.errors import DmoleError
from dmole_cli.experts.expert import Expert
from dmole_cli.experts.groups import is_plain, same_input
from dmole_cli.experts.layer import add_experts, output_of
from dmole_cli.experts.merging import MergedExperts
from dmole_cli.experts.mixtures import Mixture, plan_mixture
from dmole_cli.experts.routing_plan import ActiveExperts, GroupPlan, RowScales, Stacks, refresh
from dmole_cli.experts.samples import BatchSamples


@dataclass
class BatchPlan:
    """The plan of one batch.

    Attributes:
        groups: site -> the active LoRA experts of the sites that share its input.
        mixtures: site -> its active mixtures.
        scales: of every tower.
        samples: of the batch, where these are known.
    """

    groups: dict[str, GroupPlan] = field(default_factory=dict)
    mixtures: dict[str, list[Mixture]] = field(default_factory=dict)
    scales: list[RowScales] = field(default_factory=list)
    samples: BatchSamples | None = None

    def matrices(self) -> list[torch.Tensor]:
        """Every tensor but the scales; the same objects in every plan of `route(..., every=True)`."""
        every = [matrix for plan in self.groups.values() for matrix in (plan.stack.a, *plan.stack.b)]
        return every + [matrix for mixtures in self.mixtures.values() for own in mixtures for matrix in own.matrices()]

    @property
    def fixed(self) -> bool:
        """Whether the batch enters by its scales alone, so that CUDA graphs serve other batches, too."""
        return all(mixture.fixed for mixtures in self.mixtures.values() for mixture in mixtures)


class RoutedExperts:
    """The experts attached to one backbone, and the routes of the current batch.

    Args:
        model: the backbone; it is not changed, only hooked.
        modality_of: gives `vision` or `language` for a site.
        dropout: probability of dropping an input feature of the experts in training; all experts of a site share one mask
            (the reference draws one per expert, which makes dropout the most expensive part of the layer).

    Attributes:
        experts: name -> attached expert.
    """

    def __init__(self, model: nn.Module, modality_of: Callable[[str], str], *, dropout: float = 0.0) -> None:
        self.model, self.modality_of, self.dropout = model, modality_of, dropout
        self.experts: dict[str, Expert] = {}
        self._hooks: dict[str, torch.utils.hooks.RemovableHandle] = {}
        # Sites whose module computes its experts itself, and sites that share an input.
        self._plain: dict[str, nn.Linear] = {}
        self._groups: list[tuple[str, ...]] = []
        self._stacks = Stacks()
        self._merged = MergedExperts(model)
        self._plan = BatchPlan()
        self._mixtures: dict[tuple[str, str, torch.device], Mixture] = {}
        # Of the sites of a model that is spread over devices.
        self._devices: dict[str, torch.device] = {}

    def add(self, name: str, expert: Expert) -> None:
        """Attach an expert; it changes no output until a batch is routed to it.

        Raises:
            DmoleError: the backbone lacks one of its sites, or a site has another size.
        """
        hosts = {site: _host(self.model, name, expert, site) for site in expert.sites}
        if is_divided(self.model):
            self._devices |= {site: device_of(host) for site, host in hosts.items()}
        self.experts[name] = expert
        self._stacks.clear()
        self._mixtures.clear()
        for site, host in hosts.items():
            if site not in {*self._hooks, *self._plain} and is_plain(host):
                self._plain[site] = host
                vars(host)["forward"] = self._forward(site, host)
            if site not in self._hooks and (site not in self._plain or site in expert.gates):
                self._hooks[site] = host.register_forward_hook(self._hook(site))
        self._groups = []

    def remove(self, name: str) -> None:
        """Detach an expert, so that its memory can be freed; its sites stay prepared for others."""
        self.merge(())
        del self.experts[name]
        self._stacks.clear()
        self._mixtures.clear()

    def merge(self, names: Iterable[str]) -> None:
        """Merge these experts, and only these, into the weights of their hosts; none restores the original weights.

        Raises:
            DmoleError: a host is not a plain linear layer in float32, or an expert is a mixture.
        """
        self._merged.merge(names, self.experts)

    def close(self) -> None:
        """Detach all experts and restore merged weights."""
        self.merge(())
        for hook in self._hooks.values():
            hook.remove()
        for host in self._plain.values():
            vars(host).pop("forward", None)
        self._hooks.clear()
        self._plain.clear()
        self._groups.clear()
        self._stacks.clear()
        self._mixtures.clear()
        self.experts.clear()

    @property
    def plan(self) -> BatchPlan:
        """The plan of the current batch."""
        return self._plan

    @contextmanager
    def route(
        self,
        sets: Sequence[Iterable[str]],
        *,
        rows: Mapping[str, torch.Tensor | None] | None = None,
        samples: BatchSamples | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        every: bool = False,
    ) -> Iterator[None]:
        """Route a batch: inside the block, sample i passes through the experts `sets[i]`.

        A backward pass that recomputes activations must run inside the block, too.

        Args:
            sets: names of the experts of each sample; any number, also none. A mapping from their names to numbers weights them:
                its number is a factor on what an expert adds.
            rows: modality -> sample index of each row of that tower's tensors [rows], where rows are not samples but tiles
                or images.
            samples: of the batch; needed by mixtures that choose their parts per sample.
            device: of the backbone; None for that of its first weight. Of a backbone that is spread over devices, every site has
                its own.
            dtype: of its activations; experts stay float32 and are cast for the products. None for that of its first weight.
            every: plan for all attached experts, at the same sites and with the same tensors for every batch; only the scales
                differ.
        """
        before, weight = self._plan, next(self.model.parameters())
        active = ActiveExperts(
            self.experts,
            sets,
            rows=rows or {},
            samples=samples,
            device=weight.device if device is None else torch.device(device),
            dtype=weight.dtype if dtype is None else dtype,
        )
        self._plan = self._plan_batch(active, every=every)
        try:
            yield
        finally:
            self._plan = before

    def keep(self, samples: torch.Tensor) -> None:
        """Reduce the routed batch to these samples [indices], as decoding does when some answers are complete.

        Only the language model may run afterwards: the rows of the vision tower keep their scales.
        """
        for scales in self._plan.scales:
            if scales.per_sample:
                scales.values = scales.values[samples.to(scales.values.device)]
        if self._plan.samples is not None:
            self._plan.samples.keep(samples)

    def has_vision_expert(self, active: Iterable[Iterable[str]]) -> bool:
        """Whether any of these experts has a site in the vision encoder.

        Args:
            active: names of the experts of each sample.
        """
        names = {name for names in active for name in names}
        return any(self.modality_of(site) == "vision" for name in names for site in self.experts[name].sites)

    @contextmanager
    def narrowed(self, samples: torch.Tensor) -> Iterator[None]:
        """Inside the block, reduce the batch to these samples [indices, each any number of times], as `keep` does."""
        before, own = [(scales, scales.values) for scales in self._plan.scales], self._plan.samples
        kept = None if own is None else own.kept
        self.keep(samples)
        try:
            yield
        finally:
            for scales, values in before:
                scales.values = values
            if own is not None:
                own.kept = kept

    @torch.no_grad()
    def _plan_batch(self, active: ActiveExperts, *, every: bool) -> BatchPlan:
        plan, keep = BatchPlan(samples=active.samples), every or active.device.type == "cuda"
        if not self._groups:  # after experts have been attached
            others = [(site,) for site in self._hooks if site not in self._plain]
            self._groups = [*same_input(self._plain, self.model), *others]
        for group in self._groups:
            modality, device = self.modality_of(group[0]), self._devices.get(group[0])
            names: dict[str, list[str]] = {}
            for site in group:
                attached = [name for name in active.every if site in self.experts[name].sites]
                here = attached if every else [name for name in attached if name in active.names]
                mixtures = [name for name in here if site in self.experts[name].gates]
                if mixtures:
                    plan.mixtures[site] = [self._mixture(site, name, active, device) for name in mixtures]
                if len(mixtures) < len(here):
                    names[site] = [n for n in (attached if keep else here) if site not in self.experts[n].gates]
            if names:
                found = self._stacks.plan(names, active, modality, device, keep=keep, fuse=every)
                plan.groups |= dict.fromkeys(names, found)
        active.fill(self._stacks.columns)
        if keep:
            refresh({id(group): group for group in plan.groups.values()}.values())
        plan.scales = active.tables()
        return plan

    def _mixture(self, site: str, name: str, active: ActiveExperts, device: torch.device | None) -> Mixture:
        """The mixture of an expert at a site; a frozen one's matrices are moved to the device once, not per batch."""
        key = (site, name, device or active.device)
        known = self._mixtures.get(key)
        mixture = plan_mixture(site, name, active, self.modality_of(site), device, known=known)
        if known is None and not self.experts[name].trainable:
            self._mixtures[key] = mixture
        return mixture

    def _forward(self, site: str, module: nn.Linear) -> Callable[[torch.Tensor], torch.Tensor]:
        """What computes a plain linear module while experts are attached."""

        def forward(input: torch.Tensor) -> torch.Tensor:
            plan = self._plan.groups.get(site)
            if plan is None:
                return F.linear(input, module.weight, module.bias)
            dropout = self.dropout if torch.is_grad_enabled() else 0.0
            same = input.dtype == module.weight.dtype == plan.stack.a.dtype
            if dropout or not same or _under_autocast(input.device.type):
                output = F.linear(input, module.weight, module.bias)
                return add_experts(module, input, output, plan, site, dropout=dropout)
            return output_of(site, input, plan, [self._plain[name] for name in plan.stack.sites])

        return forward

    def _hook(self, site: str) -> Callable[[nn.Module, tuple, torch.Tensor], torch.Tensor]:
        def add_active_experts(module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
            dropout = self.dropout if torch.is_grad_enabled() else 0.0
            if site in self._plan.groups and site not in self._plain:
                output = add_experts(module, args[0], output, self._plan.groups[site], site, dropout=dropout)
            for mixture in self._plan.mixtures.get(site, ()):
                output = mixture.add_to(output, args[0], dropout=dropout)
            return output

        return add_active_experts


def _host(model: nn.Module, name: str, expert: Expert, site: str) -> nn.Module:
    """The module of a site; refuses an expert that does not fit."""
    try:
        host: Any = model.get_submodule(site)
    except AttributeError:
        host = None
    a, b = expert.sites[site]
    found = (getattr(host, "in_features", None), getattr(host, "out_features", None))
    if found != (a.shape[1], b.shape[0]):
        problem = (
            "the backbone has no such module" if host is None else f"the module has {found[0]} -> {found[1]} features"
        )
        raise DmoleError(
            f"the expert of {name} does not fit the backbone at {site} ({a.shape[1]} -> {b.shape[0]} features): {problem}",
            "use the backbone that the expert was trained on, or train the task again",
        )
    return host


def _under_autocast(device: str) -> bool:
    """Whether linear layers cast their input on this type of device."""
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
