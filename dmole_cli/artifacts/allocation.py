"""`allocations/<task>.json`: which sites host an expert of a task, and enough to check the decision by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dmole_cli.artifacts.files import write_json
from dmole_cli.artifacts.provenance import Header, read_header
from dmole_cli.errors import DmoleError

SCHEMA, VERSION = "dmole.allocation", 1
KEYS = ("task", "budget", "rank", "alpha", "spent", "modalities", "sites")


def write_allocation(path: Path, document: dict[str, Any], header: Header) -> None:
    """Write the placement (keys of `KEYS`), its header under `provenance`."""
    write_json(path, {**{key: document[key] for key in KEYS}, "provenance": header.as_dict()})


def read_allocation(path: Path, *, hint: str) -> tuple[dict[str, Any], Header]:
    """Read (placement, header).

    Raises:
        DmoleError: missing, not JSON, or another schema.
    """
    if not path.exists():
        raise DmoleError(f"{path} is not there", hint)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DmoleError(f"{path} is not valid JSON: {error}", hint) from error
    if not isinstance(document, dict):
        raise DmoleError(f"{path} does not hold an allocation", hint)
    header = read_header(document.get("provenance"), path=path, schema=SCHEMA, version=VERSION)
    missing = [key for key in KEYS if key not in document]
    if missing:
        raise DmoleError(f"{path} is damaged: it lacks {', '.join(missing)}", hint)
    return document, header


def allocation_header(path: Path) -> Header | None:
    """Read the header alone."""
    return read_allocation(path, hint="delete it and run the stage again")[1] if path.exists() else None
