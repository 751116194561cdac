"""What each site computes for one batch: the stacked matrices of the active experts, and their scales per sample.

A plan is made once per batch and serves all its forward passes, every step of decoding among them. Per site, the A and B of
the experts that any sample uses are stacked; a tensor of scales [rows, 1, ranks], zero where an expert is not active for a
row's sample, then selects each sample's own experts. A site without an active expert has no plan.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from dmole_cli.backbones.image_layouts import spread
from dmole_cli.experts.expert import Expert


@dataclass
class RowScales:
    """Scales of the active experts for each row of a tower's tensors, 0 where an expert is not active.

    Attributes:
        values: [rows, 1, ranks].
        per_sample: whether each row is one sample, as in the language model; rows of the vision tower are tiles or images.
    """

    values: torch.Tensor
    per_sample: bool

    def like(self, x: torch.Tensor) -> torch.Tensor:
        """The scales of x [rows, ..., features], with as many dimensions as x (see `spread` for its layouts).

        Raises:
            DmoleError: x has another number of rows.
        """
        if len(self.values) == len(x) and x.dim() == 3:
            return self.values
        values, packed = spread(self.values[:, 0], x, per_sample=self.per_sample)
        return values[None] if packed else values.view(len(x), *([1] * (x.dim() - 2)), values.shape[-1])


@dataclass
class SitePlan:
    """The active LoRA experts of one site.

    Attributes:
        a: stacked A [ranks, in], trainable experts first; detached.
        b: stacked and transposed B [ranks, out], detached; contiguous rows make a decoding step's reads sequential.
        scales: shared by all sites with the same experts at the same ranks.
        trained: A and B of the trainable experts, in the order of the stack.
    """

    a: torch.Tensor
    b: torch.Tensor
    scales: RowScales
    trained: tuple[torch.Tensor, ...]


class ActiveExperts:
    """The experts that a batch uses, and their scales for each sample.

    Args:
        experts: name -> expert, all attached ones.
        sets: names of each sample's experts.
        rows: modality -> sample of each row of that tower, where rows are not samples.
        device: of the backbone.
        dtype: of its activations.
        every: take all attached experts, also those that no sample uses.

    Attributes:
        names: the experts that any sample uses, or all, trainable ones first.
    """

    def __init__(
        self,
        experts: Mapping[str, Expert],
        sets: Sequence[Iterable[str]],
        *,
        rows: Mapping[str, torch.Tensor | None],
        device: torch.device,
        dtype: torch.dtype,
        every: bool = False,
    ) -> None:
        self.experts, self.rows, self.device, self.dtype, self.every = experts, rows, device, dtype, every
        chosen = [set(names) for names in sets]
        used: set[str] = set(experts) if every else set().union(*chosen)
        self.names = sorted((n for n in experts if n in used), key=lambda n: not experts[n].trainable)
        # [samples, experts]: alpha / rank of a sample's own experts, 0 for the others.
        self._scales = torch.tensor([[experts[n].scale * (n in names) for n in self.names] for names in chosen])
        self._made: dict[tuple, RowScales] = {}

    def scales(self, ranks: Iterable[tuple[str, int]], modality: str, device: torch.device | None = None) -> RowScales:
        """The scales of some experts in a tower.

        Args:
            ranks: (expert, its rank), in the order of the stack.
            modality: of the tower.
            device: of the site, where it is another one than the backbone's.
        """
        device = device or self.device
        columns = tuple(self.names.index(name) for name, rank in ranks for _ in range(rank))
        key = (columns, modality, device)
        if key not in self._made:
            values = self._scales[:, columns].to(device, self.dtype, non_blocking=device.type == "cuda")
            rows = self.rows.get(modality)
            values = values if rows is None else values.index_select(0, rows.to(device))
            self._made[key] = RowScales(values[:, None], per_sample=rows is None)
        return self._made[key]


@dataclass
class StackedExperts:
    """Makes the plans of sites; a frozen expert's matrices are converted for the device and dtype once, not per batch."""

    _converted: dict[tuple, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    # Of all attached experts of a site, which every batch shares.
    _every: dict[tuple, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    def clear(self) -> None:
        """Forget converted matrices, because a name now stands for another expert."""
        self._converted.clear()
        self._every.clear()

    def plan(
        self,
        site: str,
        names: Sequence[str],
        active: ActiveExperts,
        modality: str,
        device: torch.device | None = None,
    ) -> SitePlan:
        """Stack the matrices of these experts [at least one] at a site, on its device."""
        device = device or active.device
        pairs = [self._matrices(name, site, active, device) for name in names]
        ranks = [(name, len(a)) for name, (a, _) in zip(names, pairs, strict=True)]
        experts = [active.experts[name] for name in names]
        key = (site, tuple(names), device, active.dtype)
        a, b = self._every.get(key) or (
            (torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs])) if len(pairs) > 1 else pairs[0]
        )
        if active.every and not any(expert.trainable for expert in experts):
            self._every[key] = a, b
        return SitePlan(
            a=a,
            b=b,
            scales=active.scales(ranks, modality, device),
            trained=tuple(matrix for expert in experts if expert.trainable for matrix in expert.sites[site]),
        )

    def _matrices(
        self, name: str, site: str, active: ActiveExperts, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A and the transposed B on the site's device and in the batch's dtype."""
        expert, key = active.experts[name], (name, site, device, active.dtype)
        if key in self._converted:
            return self._converted[key]
        a, b = expert.sites[site]
        pair = a.detach().to(device, active.dtype), b.detach().to(device, active.dtype).t().contiguous()
        if not expert.trainable:
            self._converted[key] = pair
        return pair
