"""Safetensors files with a provenance header in their metadata."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmole_cli.artifacts.files import replacing
from dmole_cli.artifacts.provenance import HEADER_KEY, Header, read_header
from dmole_cli.errors import DmoleError

if TYPE_CHECKING:
    import torch


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], header: Header) -> None:
    """Write tensors; the metadata hold the header under the key `dmole`."""
    from safetensors.torch import save

    metadata = {HEADER_KEY: header.to_json()}
    content = save({k: v.detach().contiguous().cpu() for k, v in sorted(tensors.items())}, metadata)
    with replacing(path) as temporary:
        # Not save_file: when the disk is full it raises an error of its own that does not say so.
        temporary.write_bytes(content)


def read_tensors(path: Path, *, schema: str, version: int, hint: str) -> tuple[dict[str, torch.Tensor], Header]:
    """Read (tensors, header).

    Raises:
        DmoleError: the file is missing (`hint` says how to make it), damaged, or of another schema.
    """
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        raise DmoleError(f"{path} is not there", hint)
    try:
        with safe_open(path, "pt") as file:
            header = _header(file.metadata(), path=path, schema=schema, version=version)
            return {key: file.get_tensor(key) for key in file.keys()}, header  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise DmoleError(f"{path} cannot be read as safetensors: {error}", hint) from error


def header_of_tensors(path: Path, *, schema: str, version: int) -> Header | None:
    """Read the header alone; None where the file is not there."""
    if not path.exists():
        return None
    with _opened(path) as file:
        return _header(file.metadata(), path=path, schema=schema, version=version)


def numbers_in(path: Path) -> int:
    """How many numbers the tensors of a file hold; reads none of them."""
    with _opened(path) as file:
        return sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118 - not a mapping


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A file whose tensors are not looked at, so that whoever asks does not wait for torch."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise DmoleError(
            f"{path} cannot be read as safetensors: {error}", "delete it and run the stage again"
        ) from error


def _header(metadata: Mapping[str, str] | None, *, path: Path, schema: str, version: int) -> Header:
    return read_header((metadata or {}).get(HEADER_KEY), path=path, schema=schema, version=version)
