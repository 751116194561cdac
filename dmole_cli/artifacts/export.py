"""`dmole.json` of an exported folder: what the export was made from, and the digests of its files."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel

from dmole_cli.artifacts.allocation import read_json_object
from dmole_cli.artifacts.errors import DamagedArtifact
from dmole_cli.artifacts.files import digest_of, digest_of_file, write_json
from dmole_cli.artifacts.kinds import EXPORT
from dmole_cli.artifacts.provenance import Header, parse_header, validated, verify_content


class _Facts(BaseModel):
    """File name -> sha256."""

    files: dict[str, str]


def write_export_header(path: Path, header: Header) -> None:
    """Write the header; the last file of an export, so that its presence means that the export is complete."""
    files = {
        file.name: digest_of_file(file) for file in sorted(path.parent.iterdir()) if file.is_file() and file != path
    }
    write_json(path, header.with_facts(files=files).sealed(path, digest_of(files)).as_dict())


def read_export_header(path: Path) -> Header:
    """Read the header, and compare the files of the folder with it.

    Raises:
        ArtifactError: the file is not that of an export, or a file of the export is missing or has changed.
    """
    header = parse_header(read_json_object(path), path=path, kind=EXPORT)
    files = validated(_Facts, dict(header.facts), path=path).files
    verify_content(header, digest_of(files), path)
    for name, digest in files.items():
        file = path.parent / Path(name).name
        if not file.is_file() or digest_of_file(file) != digest:
            raise DamagedArtifact(path, f"{file} is not as it was exported")
    return header
