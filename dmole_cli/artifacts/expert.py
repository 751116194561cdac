"""`experts/<task>.safetensors`: the tensors that one task added, nothing else.

`<site>.lora_A.weight` [rank, in], `<site>.lora_B.weight` [out, rank]; rank, alpha and digests stand in the header.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dmole_cli.artifacts.provenance import Header, require_facts
from dmole_cli.artifacts.tensors import header_of_tensors, read_tensors, write_tensors
from dmole_cli.errors import DmoleError

if TYPE_CHECKING:
    import torch

SCHEMA, VERSION = "dmole.expert", 1
A_SUFFIX, B_SUFFIX = ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True)
class ExpertFile:
    """One task's expert as it stands on disk.

    Attributes:
        sites: site -> (A [rank, in], B [out, rank]).
        scale: alpha / rank, what B A x is multiplied with.
        header: provenance; its facts hold `scale`, `parameters`, and `rank`, `alpha` where all sites share them.
    """

    sites: dict[str, tuple[torch.Tensor, torch.Tensor]]
    scale: float
    header: Header

    @property
    def parameters(self) -> int:
        """Stored numbers."""
        return sum(a.numel() + b.numel() for a, b in self.sites.values())


def write_expert(path: Path, expert: ExpertFile) -> None:
    """Write an expert; its own tensors are all there is in the file."""
    tensors = {f"{site}{A_SUFFIX}": a for site, (a, _) in expert.sites.items()}
    tensors |= {f"{site}{B_SUFFIX}": b for site, (_, b) in expert.sites.items()}
    ranks = {a.shape[0] for a, _ in expert.sites.values()}
    shared = {"rank": min(ranks), "alpha": expert.scale * min(ranks)} if len(ranks) == 1 else {}
    facts = {**expert.header.facts, **shared, "scale": expert.scale, "parameters": expert.parameters}
    write_tensors(path, tensors, replace(expert.header, facts=facts))


def read_expert(path: Path, *, hint: str) -> ExpertFile:
    """Read an expert.

    Raises:
        DmoleError: missing, damaged, of another schema, or a site has only one of its two matrices.
    """
    tensors, header = read_tensors(path, schema=SCHEMA, version=VERSION, hint=hint)
    require_facts(header, ("scale",), path=path, hint=hint)
    names = [key.removesuffix(A_SUFFIX) for key in tensors if key.endswith(A_SUFFIX)]
    if sorted(tensors) != sorted([n + A_SUFFIX for n in names] + [n + B_SUFFIX for n in names]):
        raise DmoleError(f"{path} holds tensors that are not pairs of lora_A and lora_B", hint)
    sites = {name: (tensors[name + A_SUFFIX], tensors[name + B_SUFFIX]) for name in names}
    return ExpertFile(sites=sites, scale=header.facts["scale"], header=header)


def expert_header(path: Path) -> Header | None:
    """Read the header alone."""
    return header_of_tensors(path, schema=SCHEMA, version=VERSION)
