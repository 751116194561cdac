"""`experts/<task>.safetensors`: the tensors of one task's expert, nothing else.

`<site>.lora_A.weight` [rank, in] and `<site>.lora_B.weight` [out, rank]; rank and alpha are in the header. Where the expert is a
mixture, also the tensors that weigh its parts (`MIXTURES`): `<site>.<name>.weight`, or `<site>.<name>.buffer` for those that do
not train.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, FiniteFloat

from dmole_cli.artifacts.errors import DamagedArtifact
from dmole_cli.artifacts.kinds import EXPERT
from dmole_cli.artifacts.provenance import Header, validated
from dmole_cli.artifacts.tensors import read_tensors, write_tensors

if TYPE_CHECKING:
    import torch

A_SUFFIX, B_SUFFIX = ".lora_A.weight", ".lora_B.weight"
GATE_KIND, BUFFER_KIND = "weight", "buffer"
# The tensors at a site of each kind of mixture, with their shapes; `None` for a size that the site does not determine.
MIXTURES: tuple[Mapping[str, tuple[str | int | None, ...]], ...] = (
    {"gate": (None, "in")},  # dense (experts/dense_mixture.py)
    # separable (experts/separable_mixture.py)
    {"vu_router": (None, "in"), "if_router": (None, None), "vu_fusion": (1, "out"), "if_fusion": (1, "out")},
)


class _Facts(BaseModel):
    """What the reader of an expert needs from its header."""

    scale: FiniteFloat
    parameters: int


@dataclass(frozen=True)
class ExpertFile:
    """One task's expert as it is stored.

    Attributes:
        sites: site -> (A [rank, in], B [out, rank]).
        scale: alpha / rank, the factor on B A x.
        header: provenance; its facts hold `scale`, `parameters`, and `rank`, `alpha` where all sites share them. Those of methods
            with routers hold `transfer_shares`: earlier task -> share (0..1) of the training samples that activated its expert.
        gates: site -> name -> tensor, for a mixture: what weighs its parts and has been trained.
        buffers: the same, of tensors that do not train.
    """

    sites: dict[str, tuple[torch.Tensor, torch.Tensor]]
    scale: float
    header: Header
    gates: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    buffers: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)

    @property
    def parameters(self) -> int:
        """Number of trained elements."""
        pairs = sum(a.numel() + b.numel() for a, b in self.sites.values())
        return pairs + sum(gate.numel() for own in self.gates.values() for gate in own.values())


def write_expert(path: Path, expert: ExpertFile) -> None:
    """Write an expert."""
    tensors = {f"{site}{A_SUFFIX}": a for site, (a, _) in expert.sites.items()}
    tensors |= {f"{site}{B_SUFFIX}": b for site, (_, b) in expert.sites.items()}
    for kind, every in ((GATE_KIND, expert.gates), (BUFFER_KIND, expert.buffers)):
        tensors |= {f"{site}.{name}.{kind}": tensor for site, own in every.items() for name, tensor in own.items()}
    ranks = {a.shape[0] for a, _ in expert.sites.values()}
    shared = {"rank": min(ranks), "alpha": expert.scale * min(ranks)} if len(ranks) == 1 else {}
    facts = {**expert.header.facts, **shared, "scale": expert.scale, "parameters": expert.parameters}
    write_tensors(path, tensors, replace(expert.header, facts=facts))


def read_expert(path: Path) -> ExpertFile:
    """Read an expert.

    Raises:
        ArtifactError: the file is missing, damaged or of another kind, or a site lacks one of its two matrices.
    """
    tensors, header = read_tensors(path, EXPERT)
    facts = validated(_Facts, dict(header.facts), path=path)
    names = [key.removesuffix(A_SUFFIX) for key in tensors if key.endswith(A_SUFFIX)]
    gates, buffers = _of_mixtures(tensors, GATE_KIND), _of_mixtures(tensors, BUFFER_KIND)
    expected = [n + A_SUFFIX for n in names] + [n + B_SUFFIX for n in names]
    for kind, every in ((GATE_KIND, gates), (BUFFER_KIND, buffers)):
        expected += [f"{site}.{name}.{kind}" for site, own in every.items() for name in own if site in names]
    if sorted(tensors) != sorted(expected):
        raise DamagedArtifact(path, f"{path} holds tensors that are not pairs of lora_A and lora_B")
    sites = {name: (tensors[name + A_SUFFIX], tensors[name + B_SUFFIX]) for name in names}
    for name, (a, b) in sites.items():
        pair = a.ndim == b.ndim == 2 and a.shape[0] == b.shape[1]
        weighs = {**gates.get(name, {}), **buffers.get(name, {})}
        gated = not weighs or any(_fits(weighs, shapes, a, b) for shapes in MIXTURES)
        if not (pair and gated and a.is_floating_point() and b.is_floating_point()):
            raise DamagedArtifact(path, f"{path} is damaged: the shapes of the tensors of {name} do not match")
    return ExpertFile(sites=sites, scale=facts.scale, header=header, gates=gates, buffers=buffers)


def _of_mixtures(tensors: Mapping[str, torch.Tensor], kind: str) -> dict[str, dict[str, torch.Tensor]]:
    """site -> name -> tensor, of one kind of the tensors that weigh the parts of mixtures."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    known = {name for shapes in MIXTURES for name in shapes}
    for key, tensor in sorted(tensors.items()):
        site, _, name = key.removesuffix(f".{kind}").rpartition(".")
        if key.endswith(f".{kind}") and name in known:
            found.setdefault(site, {})[name] = tensor
    return found


def _fits(
    weighs: Mapping[str, torch.Tensor],
    shapes: Mapping[str, tuple[str | int | None, ...]],
    a: torch.Tensor,
    b: torch.Tensor,
) -> bool:
    """Whether these tensors are those of a kind of mixture, at a site with A [rank, in] and B [out, rank]."""
    widths = {"in": a.shape[-1], "out": b.shape[0]}
    return weighs.keys() == shapes.keys() and all(
        len(shapes[name]) == tensor.ndim
        and all(
            size is None or widths.get(str(size), size) == found
            for size, found in zip(shapes[name], tensor.shape, strict=True)
        )
        for name, tensor in weighs.items()
    )


def is_imported(header: Header) -> bool:
    """Whether an expert was imported from a PEFT adapter; training does not reproduce it."""
    return "imported" in header.settings
