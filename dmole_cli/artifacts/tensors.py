"""Safetensors files with a provenance header in their metadata."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmole_cli.artifacts.errors import DamagedArtifact, MissingArtifact
from dmole_cli.artifacts.files import replacing
from dmole_cli.artifacts.kinds import Kind
from dmole_cli.artifacts.provenance import HEADER_KEY, Header, parse_header

if TYPE_CHECKING:
    import torch


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], header: Header) -> None:
    """Write tensors; the metadata hold the header under the key `dmole`."""
    from safetensors.torch import save

    metadata = {HEADER_KEY: header.to_json()}
    content = save({k: v.detach().contiguous().cpu() for k, v in sorted(tensors.items())}, metadata)
    with replacing(path) as temporary:
        # Not save_file: on a full disk it raises an error of its own, which does not name the cause.
        temporary.write_bytes(content)


def read_tensors(path: Path, kind: Kind) -> tuple[dict[str, torch.Tensor], Header]:
    """Read (tensors, header).

    Raises:
        ArtifactError: the file is missing, damaged, or of another kind.
    """
    with _opened(path, "pt") as file:
        header = parse_header((file.metadata() or {}).get(HEADER_KEY), path=path, kind=kind)
        return {key: file.get_tensor(key) for key in file.keys()}, header  # noqa: SIM118 - not a mapping


def tensors_header(path: Path, kind: Kind) -> Header:
    """Read the header alone, without importing torch.

    Raises:
        ArtifactError: as for `read_tensors`.
    """
    with _opened(path, "numpy") as file:
        return parse_header((file.metadata() or {}).get(HEADER_KEY), path=path, kind=kind)


def count_elements(path: Path) -> int:
    """Number of elements of all tensors of a file; reads shapes only."""
    with _opened(path, "numpy") as file:
        return sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118 - not a mapping


@contextmanager
def _opened(path: Path, framework: str) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        raise MissingArtifact(path)
    try:
        with safe_open(path, framework) as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise DamagedArtifact(path, f"{path} cannot be read as safetensors: {error}") from error
