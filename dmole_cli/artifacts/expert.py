"""`experts/<task>.safetensors`: the tensors of one task's expert, nothing else.

`<site>.lora_A.weight` [rank, in], `<site>.lora_B.weight` [out, rank], and `<site>.gate.weight` [parts, in] where the expert is a
dense mixture; rank and alpha are in the header.
"""

from __future__ import annotations

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

A_SUFFIX, B_SUFFIX, GATE_SUFFIX = ".lora_A.weight", ".lora_B.weight", ".gate.weight"


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
        gates: site -> [parts, in], for a dense mixture.
    """

    sites: dict[str, tuple[torch.Tensor, torch.Tensor]]
    scale: float
    header: Header
    gates: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def parameters(self) -> int:
        """Number of stored elements."""
        pairs = sum(a.numel() + b.numel() for a, b in self.sites.values())
        return pairs + sum(gate.numel() for gate in self.gates.values())


def write_expert(path: Path, expert: ExpertFile) -> None:
    """Write an expert."""
    tensors = {f"{site}{A_SUFFIX}": a for site, (a, _) in expert.sites.items()}
    tensors |= {f"{site}{B_SUFFIX}": b for site, (_, b) in expert.sites.items()}
    tensors |= {f"{site}{GATE_SUFFIX}": gate for site, gate in expert.gates.items()}
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
    gates = {name: tensors[name + GATE_SUFFIX] for name in names if name + GATE_SUFFIX in tensors}
    expected = [n + A_SUFFIX for n in names] + [n + B_SUFFIX for n in names] + [n + GATE_SUFFIX for n in gates]
    if sorted(tensors) != sorted(expected):
        raise DamagedArtifact(path, f"{path} holds tensors that are not pairs of lora_A and lora_B")
    sites = {name: (tensors[name + A_SUFFIX], tensors[name + B_SUFFIX]) for name in names}
    for name, (a, b) in sites.items():
        pair = a.ndim == b.ndim == 2 and a.shape[0] == b.shape[1]
        gated = name not in gates or (gates[name].ndim == 2 and gates[name].shape[1] == a.shape[1])
        if not (pair and gated and a.is_floating_point() and b.is_floating_point()):
            raise DamagedArtifact(path, f"{path} is damaged: the shapes of the tensors of {name} do not match")
    return ExpertFile(sites=sites, scale=facts.scale, header=header, gates=gates)


def is_imported(header: Header) -> bool:
    """Whether an expert was imported from a PEFT adapter; training does not reproduce it."""
    return "imported" in header.settings
