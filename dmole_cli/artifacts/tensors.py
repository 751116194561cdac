"""Safetensors files with a provenance header in their metadata."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from dmole_cli.artifacts.errors import DamagedArtifact, require_file
from dmole_cli.artifacts.files import FileState, digest_of, replacing, state_of
from dmole_cli.artifacts.kinds import Kind
from dmole_cli.artifacts.provenance import HEADER_KEY, Header, parse_header, verify_content
from dmole_cli.errors import DmoleError, first_line

if TYPE_CHECKING:
    import torch


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], header: Header) -> None:
    """Write tensors; the metadata hold the header under the key `dmole`.

    Raises:
        DmoleError: a tensor holds a number that is not finite, or the file cannot be written.
    """
    from io import BytesIO

    from safetensors.torch import save

    if wrong := not_finite(tensors):
        message = f"{path} is not written: its tensor {wrong} holds numbers that are not finite"
        raise DmoleError(message, "lower the learning rate of the task card, or check the task's data")
    values = {k: v.detach().contiguous().cpu() for k, v in sorted(tensors.items())}
    sealed = header.sealed(path, _content(BytesIO(save(values))))
    content = save(values, {HEADER_KEY: sealed.to_json()})
    with replacing(path) as file:
        # Not save_file: on a full disk it raises an error of its own, which does not name the cause.
        file.write(content)


def not_finite(tensors: Mapping[str, torch.Tensor]) -> str:
    """The name of the first tensor that holds a NaN or an infinity; empty if there is none."""
    return next((name for name, tensor in tensors.items() if not tensor.isfinite().all()), "")


def read_tensors(path: Path, kind: Kind) -> tuple[dict[str, torch.Tensor], Header]:
    """Read (tensors, header).

    Raises:
        ArtifactError: the file is missing, damaged, or of another kind, or a tensor holds a number that is not finite.
    """
    header = tensors_header(path, kind)
    with _opened(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
    if wrong := not_finite(tensors):
        raise _holds_not_finite(path, wrong)
    return tensors, header


def _holds_not_finite(path: Path, name: str) -> DamagedArtifact:
    return DamagedArtifact(path, f"{path} is damaged: its tensor {name} holds numbers that are not finite")


def read_arrays(path: Path, kind: Kind) -> tuple[dict[str, Any], Header]:
    """Read (numpy arrays, header), without importing torch; numpy has no bfloat16.

    Raises:
        ArtifactError: as for `read_tensors`.
    """
    import numpy as np

    header = tensors_header(path, kind)
    with _opened(path, "numpy") as file:
        arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
    for key, array in arrays.items():
        if not np.isfinite(array).all():
            raise _holds_not_finite(path, key)
    return arrays, header


def tensors_header(path: Path, kind: Kind) -> Header:
    """Read the header, without importing torch, and compare the tensors with its digest.

    Raises:
        ArtifactError: as for `read_tensors`.
    """
    with _opened(path, "numpy") as file:
        header = parse_header((file.metadata() or {}).get(HEADER_KEY), path=path, kind=kind)
    verify_content(header, _content_of_file(path, state_of(path)), path)
    return header


@lru_cache(maxsize=1024)
def _content_of_file(path: Path, state: FileState) -> str:
    """`_content` of a file; an unchanged file is read once per process."""
    with path.open("rb") as file:
        return _content(file)


def _content(file: IO[bytes]) -> str:
    """sha256 over names, types, shapes and bytes of the tensors of a safetensors file, without its metadata.

    The file starts with the length of its layout (8 bytes), which is JSON; see https://github.com/huggingface/safetensors.
    """
    layout = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    layout.pop("__metadata__", None)
    digest = hashlib.sha256(digest_of(layout).encode())
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def count_elements(path: Path) -> int:
    """Number of elements of all tensors of a file; reads shapes only."""
    with _opened(path, "numpy") as file:
        return sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118 - not a mapping


@contextmanager
def _opened(path: Path, framework: str) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    require_file(path)
    try:
        with safe_open(path, framework) as file:
            yield file
    except (SafetensorError, OSError, MemoryError, ValueError) as error:
        raise DamagedArtifact(path, f"{path} cannot be read as safetensors: {first_line(error)}") from error
