"""The mixtures of LoRA parts that an expert can be: what all of them have, and which one it is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

import torch

from dmole_cli.experts.dense_mixture import DenseMixture
from dmole_cli.experts.routing_plan import ActiveExperts
from dmole_cli.experts.separable_mixture import SeparableMixture


class Mixture(Protocol):
    """A mixture at one site for one batch."""

    @property
    def fixed(self) -> bool:
        """Whether its tensors are the same for every batch, but for the scales, so that CUDA graphs can hold them."""

    def matrices(self) -> tuple[torch.Tensor, ...]:
        """Every tensor but the scales."""

    def add_to(self, output: torch.Tensor, x: torch.Tensor, *, dropout: float = 0.0) -> torch.Tensor:
        """Return output [rows, ..., out] plus what the mixture computes of x [rows, ..., in].

        `dropout` applies to the input of the parts, not to what weighs them.
        """


def plan_mixture(
    site: str,
    name: str,
    active: ActiveExperts,
    modality: str,
    device: torch.device | None = None,
    *,
    known: Any = None,
) -> Mixture:
    """The mixture of an expert at a site, on the device of the site.

    Args:
        site: module path.
        name: of the expert, which is a mixture there.
        active: the experts of the batch.
        modality: of the site's tower.
        device: of the site, where it is another one than the backbone's.
        known: the mixture of an earlier batch, whose tensors are taken.

    Raises:
        ValueError: a mixture that chooses per sample is routed without the samples of the batch.
    """
    scales, columns = active.scales([name], modality, device)
    batch: dict[str, Any] = {"scales": scales, "columns": columns}
    expert, place = active.experts[name], device or active.device
    weighs = {**expert.gates[site], **expert.buffers.get(site, {})}
    kind: type[DenseMixture] | type[SeparableMixture] = DenseMixture if "gate" in weighs else SeparableMixture
    if kind is SeparableMixture:
        if active.samples is None:
            raise ValueError("a mixture that chooses per sample needs `samples` of the batch (RoutedExperts.route)")
        batch |= {"samples": active.samples, "owners": active.rows.get(modality)}
    if known is not None:
        return replace(known, **batch)
    a, b = expert.sites[site]
    tensors: dict[str, Any] = {"a": a, "b": b, **weighs}
    if not expert.trainable:
        tensors = {part: tensor.to(place) for part, tensor in tensors.items()}
    return kind(**tensors, **batch)
