"""Safetensors files with a provenance header in their metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmole_cli.artifacts.files import replacing
from dmole_cli.artifacts.provenance import HEADER_KEY, Header, read_header
from dmole_cli.errors import DmoleError

if TYPE_CHECKING:
    import torch


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], header: Header, facts: Mapping[str, Any]) -> None:
    """Write tensors; the metadata hold the header and `facts` (JSON values) under the key `dmole`."""
    from safetensors.torch import save_file

    document = json.dumps({**header.as_dict(), "facts": facts}, sort_keys=True, ensure_ascii=False)
    with replacing(path) as temporary:
        save_file({k: v.detach().contiguous().cpu() for k, v in sorted(tensors.items())}, temporary, {HEADER_KEY: document})


def read_tensors(
    path: Path, *, schema: str, version: int, hint: str
) -> tuple[dict[str, torch.Tensor], Header, dict[str, Any]]:
    """Read (tensors, header, facts).

    Raises:
        DmoleError: the file is missing (`hint` says how to make it), damaged, or of another schema.
    """
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        raise DmoleError(f"{path} is not there", hint)
    try:
        with safe_open(path, "pt") as file:
            header, facts = _document(file.metadata(), path=path, schema=schema, version=version)
            return {key: file.get_tensor(key) for key in file.keys()}, header, facts  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise DmoleError(f"{path} cannot be read as safetensors: {error}", hint) from error


def header_of_tensors(path: Path, *, schema: str, version: int) -> tuple[Header, dict[str, Any]] | None:
    """Read (header, facts) alone; None where the file is not there."""
    if not path.exists():
        return None
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return _document(file.metadata(), path=path, schema=schema, version=version)
    except (SafetensorError, OSError) as error:
        raise DmoleError(f"{path} cannot be read as safetensors: {error}", "delete it and run the stage again") from error


def _document(metadata: Mapping[str, str] | None, *, path: Path, schema: str, version: int) -> tuple[Header, dict[str, Any]]:
    raw = json.loads((metadata or {}).get(HEADER_KEY, "null"))
    return read_header(raw, path=path, schema=schema, version=version), dict((raw or {}).get("facts", {}))
