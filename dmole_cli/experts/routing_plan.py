"""What the sites compute for one batch: the stacked matrices of the active experts, and their scales per sample.

A plan is made once per batch and serves all its forward passes, every step of decoding among them. For the sites that share an
input (groups.py), the A of the experts are stacked, as are the B of each site; scales [rows, 1, ranks], zero where an expert is
not active for a row's sample, then select each sample's own experts. A site without an active expert has no plan.

On CUDA, the stacks hold all attached experts of a site and are kept between batches, so that a batch costs one copy of the
matrices that train, and one selection of scales for each tower. On the CPU, where the products cost more than the copies, they
hold only the experts that the batch uses.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from dmole_cli.backbones.image_layouts import spread
from dmole_cli.experts.expert import Expert, MatrixGradients
from dmole_cli.experts.samples import BatchSamples

REMEMBERED = 16  # selections of scales whose columns stay on the device


@dataclass
class RowScales:
    """Scales of experts for each row of a tower's tensors, 0 where an expert is not active.

    Attributes:
        values: [rows, 1, columns]; every site has its own columns.
        per_sample: whether each row is one sample, as in the language model; rows of the vision tower are tiles or images.
    """

    values: torch.Tensor
    per_sample: bool

    def like(self, x: torch.Tensor, columns: slice) -> torch.Tensor:
        """Some columns as the scales of x [rows, ..., features], with as many dimensions as x (see `spread` for its layouts).

        Raises:
            DmoleError: x has another number of rows.
        """
        own = self.values[:, :, columns]
        if len(own) == len(x) and x.dim() == 3:
            return own
        values, packed = spread(own[:, 0], x, per_sample=self.per_sample)
        return values[None] if packed else values.view(len(x), *([1] * (x.dim() - 2)), values.shape[-1])


@dataclass
class TrainedMatrices:
    """A and B of a trainable expert at one site, as part of a stack.

    Attributes:
        site: index in the stack's sites.
        ranks: of the stack's A.
        a: the expert's A [rank, in], float32.
        b: the expert's B [out, rank], float32.
        gradients: where the backward pass writes their gradients; None to leave them to autograd.
    """

    site: int
    ranks: slice
    a: torch.Tensor
    b: torch.Tensor
    gradients: MatrixGradients | None = None


@dataclass
class Stack:
    """Matrices of experts at sites that share an input.

    Attributes:
        sites: their paths.
        a: A of all experts of all sites [ranks, in], site by site, trainable experts first; detached.
        b: of each site, the transposed B [ranks of the site, out]; contiguous rows make a decoding step's reads sequential.
        ranks: of each site, its part of a.
        owners: the expert of each rank.
        trained: (expert, index of the site, its ranks in a) of the trainable ones.
        fused: with the weights of the modules, once they are needed.
    """

    sites: tuple[str, ...]
    a: torch.Tensor
    b: list[torch.Tensor]
    ranks: list[slice]
    owners: list[str]
    trained: list[tuple[str, int, slice]]
    fused: FusedWeights | None = None


@dataclass
class FusedWeights:
    """The weights of a group's modules and the experts' matrices, as two products: W and A, and B of all sites.

    Attributes:
        weight: W of all modules, below them the A of the stack [outputs + ranks, in], with zeros up to a multiple of 8 rows,
            which tensor cores need.
        bias: of the same rows; None without any.
        b: B of all sites [ranks, outputs], zero where a rank belongs to another site.
        outputs: of each module, its part of the rows.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    b: torch.Tensor
    outputs: list[slice]


@dataclass
class GroupPlan:
    """The experts of sites that share an input, for one batch.

    Attributes:
        stack: their matrices.
        scales: of the tower.
        columns: of the stack's ranks in the scales.
        trained: of the trainable experts.
        fuses: whether forward passes without gradients use fused weights.
        ready: outputs that were computed with those of another site of the group: their input, and site -> output.
    """

    stack: Stack
    scales: RowScales
    columns: slice
    trained: list[TrainedMatrices]
    fuses: bool = False
    ready: tuple[torch.Tensor, dict[str, torch.Tensor]] | None = None


class ActiveExperts:
    """The experts that a batch uses, and their scales for each sample.

    Args:
        experts: name -> expert, all attached ones.
        sets: names of each sample's experts, or a mapping from their names to their weights.
        rows: modality -> sample of each row of that tower, where rows are not samples.
        device: of the backbone.
        dtype: of its activations.
        samples: of the batch, where they are known.

    Attributes:
        names: the experts that any sample uses.
        every: all attached experts, trainable ones first.
    """

    def __init__(
        self,
        experts: Mapping[str, Expert],
        sets: Sequence[Iterable[str]],
        *,
        rows: Mapping[str, torch.Tensor | None],
        device: torch.device,
        dtype: torch.dtype,
        samples: BatchSamples | None = None,
    ) -> None:
        self.experts, self.rows, self.device, self.dtype, self.samples = experts, rows, device, dtype, samples
        # An expert without a weight counts as a whole.
        chosen = [names if isinstance(names, Mapping) else dict.fromkeys(names, 1) for names in sets]
        self.names: set[str] = set().union(*chosen)
        self.every = sorted(experts, key=lambda n: not experts[n].trainable)
        self._index = {name: column for column, name in enumerate(self.every)}
        # [samples, experts]: weight x alpha / rank of a sample's own experts, 0 for the others.
        self._scales = torch.tensor([[experts[n].scale * names.get(n, 0) for n in self.every] for names in chosen])
        self._columns: dict[tuple[str, torch.device], tuple[RowScales, list[int]]] = {}

    def scales(
        self, owners: Iterable[str], modality: str, device: torch.device | None = None
    ) -> tuple[RowScales, slice]:
        """Reserve columns for some ranks in the scales of a tower; `fill` computes their values.

        Args:
            owners: expert of each rank.
            modality: of the tower.
            device: of the site, where it is another one than the backbone's.
        """
        key = (modality, device or self.device)
        if key not in self._columns:
            self._columns[key] = RowScales(torch.empty(0), per_sample=self.rows.get(modality) is None), []
        scales, columns = self._columns[key]
        start = len(columns)
        columns += map(self._index.__getitem__, owners)
        return scales, slice(start, len(columns))

    def fill(self, remembered: dict[tuple, torch.Tensor]) -> None:
        """Compute the values of all scales.

        Args:
            remembered: columns on their device, from earlier batches.
        """
        for (modality, device), (scales, columns) in self._columns.items():
            key = (device, tuple(columns))
            if key not in remembered:
                if len(remembered) >= REMEMBERED:
                    remembered.clear()
                remembered[key] = torch.tensor(columns, dtype=torch.int64).to(device)
            values = self._scales.to(device, self.dtype, non_blocking=device.type == "cuda")
            values = values.index_select(1, remembered[key])
            rows = self.rows.get(modality)
            scales.values = (values if rows is None else values.index_select(0, rows.to(device)))[:, None]

    def tables(self) -> list[RowScales]:
        """The scales of every tower."""
        return [scales for scales, _ in self._columns.values()]


@dataclass
class Stacks:
    """Makes the plans of groups; a frozen expert's matrices are converted for the device and dtype once, not per batch."""

    _converted: dict[tuple, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    _kept: dict[tuple, Stack] = field(default_factory=dict)
    columns: dict[tuple, torch.Tensor] = field(default_factory=dict)

    def clear(self) -> None:
        """Forget converted matrices, because a name now stands for another expert."""
        self._converted.clear()
        self._kept.clear()
        self.columns.clear()

    def plan(
        self,
        names: Mapping[str, Sequence[str]],
        active: ActiveExperts,
        modality: str,
        device: torch.device | None = None,
        *,
        keep: bool,
        fuse: bool = False,
    ) -> GroupPlan:
        """The plan of one group, whose trainable matrices `refresh` still has to copy.

        Args:
            names: site -> its experts, at least one, trainable ones first.
            active: the experts of the batch.
            modality: of the sites.
            device: of the sites, where it is another one than the backbone's.
            keep: keep the stack for later batches.
            fuse: fuse it with the weights of the modules, where no expert trains.
        """
        place = device or active.device
        key = (tuple((site, *own) for site, own in names.items()), place, active.dtype)
        stack = self._kept.get(key) or self._stack(names, active, place, keep=keep)
        if keep:
            self._kept[key] = stack
        scales, columns = active.scales(stack.owners, modality, device)
        trained = []
        for name, index, ranks in stack.trained:
            expert, site = active.experts[name], stack.sites[index]
            trained.append(TrainedMatrices(index, ranks, *expert.sites[site], expert.gradients.get(site)))
        return GroupPlan(stack, scales, columns, trained, fuses=fuse and not trained)

    def _stack(
        self, names: Mapping[str, Sequence[str]], active: ActiveExperts, device: torch.device, *, keep: bool
    ) -> Stack:
        parts, b, ranks, owners, trained = [], [], [], list[str](), list[tuple[str, int, slice]]()
        for index, (site, own) in enumerate(names.items()):
            first, rows = len(owners), []
            for name in own:
                a, transposed = self._matrices(name, site, active, device, keep=keep)
                start = len(owners)
                owners += [name] * len(a)
                parts.append(a)
                rows.append(transposed)
                if active.experts[name].trainable:
                    trained.append((name, index, slice(start, len(owners))))
            ranks.append(slice(first, len(owners)))
            b.append(torch.cat(rows) if len(rows) > 1 or keep else rows[0])
        a = torch.cat(parts) if len(parts) > 1 or keep else parts[0]
        return Stack(tuple(names), a, b, ranks, owners, trained)

    def _matrices(
        self, name: str, site: str, active: ActiveExperts, device: torch.device, *, keep: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A and the transposed B on the site's device and in the batch's dtype."""
        expert, key = active.experts[name], (name, site, device, active.dtype)
        if key in self._converted:
            return self._converted[key]
        a, b = expert.sites[site]
        pair = a.detach().to(device, active.dtype), b.detach().to(device, active.dtype).t().contiguous()
        if not expert.trainable and not keep:  # a kept stack has copies of its own
            self._converted[key] = pair
        return pair


def refresh(plans: Iterable[GroupPlan]) -> None:
    """Copy the present values of trainable matrices into kept stacks, all in a few kernels."""
    targets, sources = [], []
    for plan in plans:
        for own in plan.trained:
            first = plan.stack.ranks[own.site].start
            targets += [
                plan.stack.a[own.ranks],
                plan.stack.b[own.site][own.ranks.start - first : own.ranks.stop - first],
            ]
            sources += [own.a.detach(), own.b.detach().t()]
    if targets:
        torch._foreach_copy_(targets, sources)
