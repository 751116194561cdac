"""Digests of picture files, each read once: what a file's size and time say is still the same is not read again."""

from __future__ import annotations

from pathlib import Path

from dmole_cli.artifacts.files import digest_of_file
from dmole_cli.artifacts.provenance import Header
from dmole_cli.artifacts.tables import read_table, write_table

SCHEMA, VERSION = "dmole.pictures", 1
MISSING = "missing"  # whoever opens the picture says so, with the row that names it


class PictureDigests:
    """sha256 of picture files by path.

    Args:
        kept: where digests are kept from command to command (path, size, modification time, sha256); it only saves time.
    """

    def __init__(self, kept: Path) -> None:
        self.kept = kept
        self._known: dict[str, tuple[int, int, str]] | None = None
        self._new = False

    def of(self, path: Path) -> str:
        """The digest of a file, or `MISSING`."""
        if self._known is None:
            self._known = _read(self.kept)
        try:
            stat = path.stat()
        except OSError:
            return MISSING
        key, state = str(path.absolute()), (stat.st_size, stat.st_mtime_ns)
        if key not in self._known or self._known[key][:2] != state:
            self._known[key], self._new = (*state, digest_of_file(path)), True
        return self._known[key][2]

    def save(self) -> None:
        """Keep what is new."""
        if self._known is not None and self._new:
            _write(self.kept, self._known)
            self._new = False


def _read(kept: Path) -> dict[str, tuple[int, int, str]]:
    if not kept.exists():
        return {}
    table, _ = read_table(kept, schema=SCHEMA, version=VERSION, hint="delete it: it only saves time")
    return {row["path"]: (row["size"], row["modified"], row["sha256"]) for row in table.to_pylist()}


def _write(kept: Path, known: dict[str, tuple[int, int, str]]) -> None:
    import pyarrow as pa

    fields = [("path", pa.string()), ("size", pa.int64()), ("modified", pa.int64()), ("sha256", pa.string())]
    rows = [
        {"path": path, "size": size, "modified": modified, "sha256": digest}
        for path, (size, modified, digest) in sorted(known.items())
    ]
    write_table(kept, rows, pa.schema(fields), Header(SCHEMA, VERSION))
