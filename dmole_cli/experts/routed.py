"""Routed LoRA experts: every sample of a batch passes through exactly its own set of experts.

y = W x + sum over the sample's experts e at this site of (alpha / rank) B_e A_e x      (D-MoLE, arXiv 2506.11672, section 4.1)

The experts are forward hooks on the backbone's own linear modules: the module tree, its names and its weights stay
unchanged, and whatever computes W x (fused projections, quantised weights) is called as it is. A plan is made once per batch
(routing_plan.py), and one pair of matrix products per site then serves the whole batch (layer.py). At a site without an
active expert, the module's output is returned as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from dmole_cli.backbones.device import device_of, is_divided
from dmole_cli.errors import DmoleError
from dmole_cli.experts.dense_mixture import DenseMixture, plan_mixture
from dmole_cli.experts.expert import Expert
from dmole_cli.experts.layer import add_experts
from dmole_cli.experts.merging import MergedExperts
from dmole_cli.experts.routing_plan import ActiveExperts, RowScales, SitePlan, StackedExperts


@dataclass
class BatchPlan:
    """The plan of one batch.

    Attributes:
        sites: site -> its active LoRA experts.
        mixtures: site -> its active dense mixtures.
    """

    sites: dict[str, SitePlan] = field(default_factory=dict)
    mixtures: dict[str, list[DenseMixture]] = field(default_factory=dict)

    def scales(self) -> list[RowScales]:
        """Every tensor of scales, once."""
        every = [plan.scales for plan in self.sites.values()]
        every += [mixture.scales for mixtures in self.mixtures.values() for mixture in mixtures]
        return list({id(scales): scales for scales in every}.values())

    def matrices(self) -> list[torch.Tensor]:
        """Every tensor but the scales; the same objects in every plan of `route(..., every=True)`."""
        every = [matrix for plan in self.sites.values() for matrix in (plan.a, plan.b)]
        mixtures = [mixture for mixtures in self.mixtures.values() for mixture in mixtures]
        return every + [matrix for mixture in mixtures for matrix in (mixture.a, mixture.b, mixture.gate)]


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
        self._stacked = StackedExperts()
        self._merged = MergedExperts(model)
        self._plan = BatchPlan()
        self._mixtures: dict[tuple[str, str, torch.device], DenseMixture] = {}
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
        self._stacked.clear()
        self._mixtures.clear()
        for site, host in hosts.items():
            if site not in self._hooks:
                self._hooks[site] = host.register_forward_hook(self._hook(site))

    def merge(self, names: Iterable[str]) -> None:
        """Merge these experts, and only these, into the weights of their hosts; none restores the original weights.

        Raises:
            DmoleError: a host is not a plain linear layer in float32, or an expert is a dense mixture.
        """
        self._merged.merge(names, self.experts)

    def close(self) -> None:
        """Detach all experts and restore merged weights."""
        self.merge(())
        for hook in self._hooks.values():
            hook.remove()
        self._hooks.clear()
        self._stacked.clear()
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
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        every: bool = False,
    ) -> Iterator[None]:
        """Route a batch: inside the block, sample i passes through the experts `sets[i]`.

        A backward pass that recomputes activations must run inside the block, too.

        Args:
            sets: names of the experts of each sample; any number, also none.
            rows: modality -> sample index of each row of that tower's tensors [rows], where rows are not samples but tiles
                or images.
            device: of the backbone; None for that of its first weight. Of a backbone that is spread over devices, every site has
                its own.
            dtype: of its activations; experts stay float32 and are cast for the products. None for that of its first weight.
            every: plan all attached experts, also those that no sample uses, so that the plans of all batches have the same
                matrices and differ in the scales alone.
        """
        before, weight = self._plan, next(self.model.parameters())
        active = ActiveExperts(
            self.experts,
            [tuple(names) for names in sets],
            rows=rows or {},
            device=weight.device if device is None else torch.device(device),
            dtype=weight.dtype if dtype is None else dtype,
            every=every,
        )
        self._plan = self._plan_batch(active)
        try:
            yield
        finally:
            self._plan = before

    def keep(self, samples: torch.Tensor) -> None:
        """Reduce the routed batch to these samples [indices], as decoding does when some answers are complete.

        Only the language model may run afterwards: the rows of the vision tower keep their scales.
        """
        for scales in self._plan.scales():
            if scales.per_sample:
                scales.values = scales.values[samples.to(scales.values.device)]

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
        before = [(scales, scales.values) for scales in self._plan.scales()]
        self.keep(samples)
        try:
            yield
        finally:
            for scales, values in before:
                scales.values = values

    @torch.no_grad()
    def _plan_batch(self, active: ActiveExperts) -> BatchPlan:
        plan = BatchPlan()
        for site in self._hooks:
            modality, device = self.modality_of(site), self._devices.get(site)
            here = [name for name in active.names if site in self.experts[name].sites]
            mixtures = [name for name in here if site in self.experts[name].gates]
            plain = [name for name in here if name not in mixtures]
            if mixtures:
                plan.mixtures[site] = [self._mixture(site, name, active, device) for name in mixtures]
            if plain:
                plan.sites[site] = self._stacked.plan(site, plain, active, modality, device)
        return plan

    def _mixture(self, site: str, name: str, active: ActiveExperts, device: torch.device | None) -> DenseMixture:
        """The mixture of an expert at a site; a frozen one's matrices are moved to the device once, not per batch."""
        key = (site, name, device or active.device)
        known = self._mixtures.get(key)
        if known is not None:
            scales = active.scales([(name, 1)], self.modality_of(site), device)
            return replace(known, scales=scales)
        mixture = plan_mixture(site, name, active, self.modality_of(site), device)
        if not self.experts[name].trainable:
            self._mixtures[key] = mixture
        return mixture

    def _hook(self, site: str) -> Callable[[nn.Module, tuple, torch.Tensor], torch.Tensor]:
        def add_active_experts(module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
            dropout = self.dropout if torch.is_grad_enabled() else 0.0
            if site in self._plan.sites:
                output = add_experts(module, args[0], output, self._plan.sites[site], dropout=dropout)
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
