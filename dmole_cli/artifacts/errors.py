"""What can be wrong with an artifact. Readers raise these; cli/hints.py alone turns them into a command to type."""

from __future__ import annotations

from pathlib import Path

from dmole_cli.errors import DmoleError


class ArtifactError(DmoleError):
    """An artifact cannot be used.

    Attributes:
        path: the artifact.
        imported: whether it is an expert that was imported from a PEFT adapter, which no training reproduces.
    """

    def __init__(self, path: Path, message: str, *, imported: bool = False) -> None:
        super().__init__(message)
        self.path, self.imported = path, imported


def require_file(path: Path) -> None:
    """Check that an artifact is there and can be opened without waiting.

    Raises:
        MissingArtifact: it does not exist.
        DamagedArtifact: it is a folder, a pipe or a device.
    """
    if not path.is_file():
        raise DamagedArtifact(path, f"{path} is not a regular file") if path.exists() else MissingArtifact(path)


class MissingArtifact(ArtifactError):
    """The file does not exist."""

    def __init__(self, path: Path, detail: str = "") -> None:
        super().__init__(path, f"{path} does not exist" + (f": {detail}" if detail else ""))


class DamagedArtifact(ArtifactError):
    """The file cannot be read, or lacks something that its kind has."""


class WrongKind(ArtifactError):
    """The file is not an artifact of dmole, or one of another kind."""


class OtherVersion(ArtifactError):
    """The file is of the expected kind in a layout of another schema version."""


class ForeignArtifact(ArtifactError):
    """The file was written for another task, method or stage, and copied to this path."""


class StaleArtifact(ArtifactError):
    """The settings or inputs that the artifact was made from have changed since.

    Attributes:
        source: the artifact that has changed, where one is the reason.
    """

    def __init__(self, path: Path, changes: str, *, imported: bool = False, source: Path | None = None) -> None:
        super().__init__(path, f"{path} is stale: {changes}", imported=imported)
        self.source = source


class OtherBackbone(ArtifactError):
    """The artifact belongs to another backbone, or to this one loaded in another way."""
