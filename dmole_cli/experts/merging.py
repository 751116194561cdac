"""Experts merged into the weights of the linear modules that host them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from dmole_cli.backbones.device import require_own_weights
from dmole_cli.errors import DmoleError
from dmole_cli.experts.expert import Expert


class MergedExperts:
    """The experts that are merged into a model's weights at present, and the original weights of those modules."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._names: tuple[str, ...] = ()
        self._originals: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def merge(self, names: Iterable[str], experts: Mapping[str, Expert]) -> None:
        """Merge these experts, and only these, into the original weights; none restores the original weights.

        W + scale B A in float32; in half precision, rounding would lose most of a B A that is small against W.

        Raises:
            DmoleError: a host is not a plain linear layer in float32, or an expert is a mixture.
        """
        wanted = tuple(names)
        if wanted == self._names:
            return
        # All checks come before the first change, so that an error leaves every weight as it is.
        for name in wanted:
            self._require_mergeable(name, experts[name])
            require_own_weights(self.model, experts[name].sites, work="merging experts")
        self._names = wanted
        for site, weight in self._originals.items():
            self._host(site).weight.copy_(weight)
        self._originals.clear()
        for name in wanted:
            for site, (a, b) in experts[name].sites.items():
                weight = self._host(site).weight
                self._originals.setdefault(site, weight.clone())
                weight.addmm_(b.to(weight.device), a.to(weight.device), alpha=experts[name].scale)

    def _require_mergeable(self, name: str, expert: Expert) -> None:
        for site in expert.sites:
            host = self._host(site)
            if type(host) is not nn.Linear or host.weight.dtype != torch.float32 or expert.gates:
                message = f"the expert of {name} cannot be merged at {site}"
                raise DmoleError(message, "merging needs plain linear layers in float32 and plain LoRA experts")

    def _host(self, site: str) -> Any:
        return self.model.get_submodule(site)
