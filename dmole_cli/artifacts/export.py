"""`dmole.json` of an exported folder: what the export was made from, and the digests of its files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from pydantic import BaseModel

from dmole_cli.artifacts.allocation import read_json_object
from dmole_cli.artifacts.errors import DamagedArtifact
from dmole_cli.artifacts.files import digest_of, digest_of_file, write_json
from dmole_cli.artifacts.kinds import EXPORT
from dmole_cli.artifacts.provenance import Header, parse_header, validated, verify_content
from dmole_cli.errors import DmoleError


class _Facts(BaseModel):
    """Path below the folder -> sha256."""

    files: dict[str, str]


def write_export_header(path: Path, header: Header, files: Iterable[str]) -> None:
    """Write the header; the last file of an export, so that its presence means that the export is complete.

    Args:
        path: `dmole.json` of the export's folder.
        header: what the export was made from.
        files: the paths of its other files below the folder.
    """
    digests = {name: digest_of_file(path.parent / name) for name in sorted(files)}
    write_json(path, header.with_facts(files=digests).sealed(path, digest_of(digests)).as_dict())


def read_export_header(path: Path) -> Header:
    """Read the header, and compare the files of the folder with it.

    Raises:
        ArtifactError: the file is not that of an export, or a file of the export is missing or has changed.
    """
    header, files = _parsed(path)
    for name, digest in files.items():
        file = path.parent / name
        if not _is_below(name) or not file.is_file() or digest_of_file(file) != digest:
            raise DamagedArtifact(path, f"{file} is not as it was exported")
    return header


def files_of_export(folder: Path) -> set[str]:
    """The paths of the files that an export states to have written, below its folder; none where it states nothing."""
    try:
        _, files = _parsed(folder / EXPORT.path)
    except DmoleError:
        return set()
    return {name for name in files if _is_below(name)}


def _parsed(path: Path) -> tuple[Header, dict[str, str]]:
    header = parse_header(read_json_object(path), path=path, kind=EXPORT)
    files = validated(_Facts, dict(header.facts), path=path).files
    verify_content(header, digest_of(files), path)
    return header, files


def _is_below(name: str) -> bool:
    return not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts
