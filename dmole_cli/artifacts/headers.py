"""Reads the header of any artifact, and compares it with the header that a new run would write."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from dmole_cli.artifacts.allocation import read_allocation
from dmole_cli.artifacts.errors import ArtifactError, StaleArtifact, require_file
from dmole_cli.artifacts.expert import is_imported
from dmole_cli.artifacts.export import read_export_header
from dmole_cli.artifacts.files import FileState, state_of
from dmole_cli.artifacts.kinds import EXPORT, Kind
from dmole_cli.artifacts.provenance import Header, differences
from dmole_cli.artifacts.tables import read_table, read_table_header
from dmole_cli.artifacts.tensors import tensors_header


def header_of(path: Path, kind: Kind, *, intact: bool = False) -> Header | None:
    """The header of an artifact, None where the file does not exist.

    Args:
        path: the artifact.
        kind: what it is.
        intact: whether the digest of the whole file is known to be right, so that its content need not be compared again.

    Raises:
        ArtifactError: the file is damaged, or of another kind.
    """
    if not path.exists():
        return None
    require_file(path)
    if kind is EXPORT:  # whose digest covers other files, too
        return read_export_header(path)
    if intact and kind.container == "table":
        return read_table_header(path, kind)
    return _verified(path, kind, state_of(path))


@lru_cache(maxsize=4096)
def _verified(path: Path, kind: Kind, state: FileState) -> Header:
    """The header after its digest was compared with the content, once per process and file."""
    if kind.container == "table":
        return read_table(path, kind)[1]
    return tensors_header(path, kind) if kind.container == "tensors" else read_allocation(path)[1]


def is_current(path: Path, kind: Kind, header: Header, *, force: bool, replace: bool = False) -> bool:
    """Whether a stage's output exists and was made as it would be made now.

    Args:
        path: the output.
        kind: what it is.
        header: the header that a new run would write.
        force: the user asked for a new run; the answer is False.
        replace: the answer is False for a stale or damaged output, too, instead of an error.

    Raises:
        StaleArtifact: the output exists and was made from other settings or inputs.
        ArtifactError: the output is damaged, or of another kind.
    """
    try:
        made = None if force else header_of(path, kind)
        if made is not None and (changed := differences(made, header)):
            raise StaleArtifact(path, "; ".join(changed), imported=is_imported(made))
    except ArtifactError:
        if not replace:
            raise
        return False
    return made is not None
