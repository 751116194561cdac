"""`memories/<method>/<task>.safetensors`: what a method keeps of a task beside its expert, for the next task's training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dmole_cli.artifacts.provenance import Header
from dmole_cli.artifacts.tensors import header_of_tensors, read_tensors, write_tensors

if TYPE_CHECKING:
    import torch

SCHEMA, VERSION = "dmole.memory", 1


def write_memory(path: Path, tensors: Mapping[str, torch.Tensor], header: Header) -> None:
    """Write named tensors, with the provenance of the expert that was trained with them."""
    facts = {"parameters": sum(tensor.numel() for tensor in tensors.values())}
    write_tensors(path, tensors, replace(header, schema=SCHEMA, schema_version=VERSION, facts=facts))


def read_memory(path: Path, *, hint: str) -> dict[str, torch.Tensor]:
    """Read the named tensors."""
    return read_tensors(path, schema=SCHEMA, version=VERSION, hint=hint)[0]


def memory_header(path: Path) -> Header | None:
    """Read the header alone."""
    return header_of_tensors(path, schema=SCHEMA, version=VERSION)
