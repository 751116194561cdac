"""`checkpoints/<task>.safetensors`: the state of a training run that goes on; deleted when the expert is written."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmole_cli.artifacts.errors import ArtifactError, MissingArtifact
from dmole_cli.artifacts.kinds import CHECKPOINT
from dmole_cli.artifacts.provenance import Header, differences
from dmole_cli.artifacts.tensors import read_tensors, write_tensors
from dmole_cli.errors import DmoleWarning

if TYPE_CHECKING:
    import torch


def write_checkpoint(path: Path, tensors: Mapping[str, torch.Tensor], header: Header, facts: Mapping[str, Any]) -> None:
    """Write the state of a training run.

    Args:
        path: the file.
        tensors: of the state.
        header: provenance of the expert that is being trained.
        facts: what else belongs to the state, JSON values.
    """
    write_tensors(path, tensors, replace(header.of_kind(CHECKPOINT), facts=facts))


def read_checkpoint(path: Path, header: Header) -> tuple[dict[str, torch.Tensor], Mapping[str, Any]] | None:
    """The tensors and facts of a checkpoint; None where there is none, and with a warning where it cannot be used.

    Args:
        path: the file.
        header: provenance of the expert that is to be trained.
    """
    try:
        tensors, made = read_tensors(path, CHECKPOINT)
    except MissingArtifact:
        return None
    except ArtifactError as error:
        warnings.warn(DmoleWarning(f"{error.message}; training starts from the beginning"), stacklevel=2)
        return None
    if changed := differences(made, header.of_kind(CHECKPOINT)):
        message = f"{path} is of another training run ({'; '.join(changed)}); training starts from the beginning"
        warnings.warn(DmoleWarning(message), stacklevel=2)
        return None
    return tensors, made.facts
