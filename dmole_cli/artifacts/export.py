"""`dmole.json` of an exported folder: what the export was made from."""

from __future__ import annotations

from pathlib import Path

from dmole_cli.artifacts.files import write_json
from dmole_cli.artifacts.kinds import EXPORT
from dmole_cli.artifacts.provenance import Header, parse_header


def write_export_header(path: Path, header: Header) -> None:
    """Write the header; the last file of an export, so that its presence means that the export is complete."""
    write_json(path, header.as_dict())


def read_export_header(path: Path) -> Header:
    """Read the header.

    Raises:
        ArtifactError: the file is not that of an export.
    """
    return parse_header(path.read_bytes(), path=path, kind=EXPORT)
