"""`memories/<method>/<task>.safetensors`: what a method stores beside an expert, for the next task's training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dmole_cli.artifacts.kinds import MEMORY
from dmole_cli.artifacts.provenance import Header
from dmole_cli.artifacts.tensors import read_tensors, write_tensors

if TYPE_CHECKING:
    import torch


def write_memory(path: Path, tensors: Mapping[str, torch.Tensor], header: Header) -> None:
    """Write named tensors, with the provenance of the expert they were computed with."""
    facts = {"parameters": sum(tensor.numel() for tensor in tensors.values())}
    write_tensors(path, tensors, header.of_kind(MEMORY).with_facts(**facts))


def read_memory(path: Path) -> dict[str, torch.Tensor]:
    """Read the named tensors."""
    return read_tensors(path, MEMORY)[0]
