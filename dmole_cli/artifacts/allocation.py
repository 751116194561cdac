"""`allocations/<task>.json`: the sites that host an expert of a task, and the figures to verify the decision by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dmole_cli.artifacts.errors import DamagedArtifact, MissingArtifact
from dmole_cli.artifacts.files import write_json
from dmole_cli.artifacts.kinds import ALLOCATION
from dmole_cli.artifacts.provenance import Header, parse_header

KEYS = ("task", "budget", "rank", "alpha", "spent", "modalities", "sites")


def write_allocation(path: Path, document: dict[str, Any], header: Header) -> None:
    """Write an allocation (the keys of `KEYS`), its header under `provenance`."""
    write_json(path, {**{key: document[key] for key in KEYS}, "provenance": header.as_dict()})


def read_allocation(path: Path) -> tuple[dict[str, Any], Header]:
    """Read (allocation, header).

    Raises:
        ArtifactError: the file is missing, damaged, or of another kind.
    """
    if not path.exists():
        raise MissingArtifact(path)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DamagedArtifact(path, f"{path} is not valid JSON: {error}") from error
    if not isinstance(document, dict):
        raise DamagedArtifact(path, f"{path} does not hold an allocation")
    header = parse_header(document.get("provenance"), path=path, kind=ALLOCATION)
    missing = [key for key in KEYS if key not in document]
    if missing:
        raise DamagedArtifact(path, f"{path} is damaged: it lacks {', '.join(missing)}")
    return document, header
