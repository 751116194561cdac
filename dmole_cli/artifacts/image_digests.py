"""Digests of image files: a file is read again only if its size or modification time has changed."""

from __future__ import annotations

import hashlib
import sqlite3
import warnings
from contextlib import closing
from pathlib import Path

from dmole_cli.artifacts.files import digest_of_file
from dmole_cli.errors import DmoleError, DmoleWarning
from dmole_cli.processes import is_first
from dmole_cli.settings.documents import require_regular

MISSING = "missing"  # the error is raised by the reader of the image, which knows the row that names it
SCHEMA = "CREATE TABLE IF NOT EXISTS digests (state BLOB PRIMARY KEY, digest BLOB) WITHOUT ROWID"
# Seconds to wait for another process that writes the cache.
TIMEOUT = 60.0


class ImageDigests:
    """sha256 of image files by path.

    New digests are held in an SQLite database in memory, whose rows take a fraction of what Python objects take.

    Args:
        cache: SQLite file that holds digests between commands; None to read every file again.
    """

    def __init__(self, cache: Path | None) -> None:
        self.cache = cache
        self._new = sqlite3.connect(":memory:")
        self._new.execute(SCHEMA)
        self._stored: sqlite3.Connection | None = None

    def __getitem__(self, path: Path) -> str:
        """The digest of a regular file, or `MISSING`."""
        try:
            require_regular(path)  # a FIFO or a device would block, or never end
            status = path.stat()
        except (OSError, ValueError):  # ValueError: a null byte in the name
            return MISSING
        state = f"{path.absolute()}\0{status.st_size}\0{status.st_mtime_ns}"
        key = hashlib.blake2b(state.encode("utf-8", errors="surrogateescape"), digest_size=16).digest()
        digest = self._find(key)
        if digest is None:
            try:
                digest = bytes.fromhex(digest_of_file(path))
            except OSError:
                return MISSING
            self._new.execute("INSERT INTO digests VALUES (?, ?)", (key, digest + _check(key, digest)))
        return digest.hex()

    def save(self) -> None:
        """Add new digests to the cache.

        Raises:
            DmoleError: the cache cannot be written.
        """
        rows = self._new.execute("SELECT state, digest FROM digests").fetchall()
        if not rows or self.cache is None or not is_first():
            return
        try:
            self.cache.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.cache, timeout=TIMEOUT)) as stored, stored:
                stored.execute(SCHEMA)
                stored.executemany("INSERT OR REPLACE INTO digests VALUES (?, ?)", rows)
        except (sqlite3.OperationalError, OSError) as error:
            raise DmoleError(
                f"cannot write {self.cache}: {error}", "check free space and the folder's permissions"
            ) from error
        except sqlite3.DatabaseError as error:
            self._discard(error)
            return
        self._new.execute("DELETE FROM digests")
        self._stored = None

    def _find(self, key: bytes) -> bytes | None:
        query = "SELECT digest FROM digests WHERE state = ?"
        found = self._new.execute(query, (key,)).fetchone()
        if found is None and self.cache is not None and self.cache.exists():
            try:
                if self._stored is None:
                    self._stored = sqlite3.connect(
                        f"{self.cache.absolute().as_uri()}?mode=ro", uri=True, timeout=TIMEOUT
                    )
                found = self._stored.execute(query, (key,)).fetchone()
            except sqlite3.OperationalError:  # locked, or without the table: computed again
                self._stored = None
            except sqlite3.DatabaseError as error:
                self._discard(error)
        if not found or not isinstance(found[0], bytes):
            return None
        digest, check = found[0][:32], found[0][32:]
        return digest if check == _check(key, digest) else None

    def _discard(self, error: Exception) -> None:
        """Delete a cache that cannot be read; its digests are computed again."""
        self._stored = None
        assert self.cache is not None
        self.cache.unlink(missing_ok=True)
        warnings.warn(
            DmoleWarning(f"{self.cache} was damaged ({error}); it is a cache and is filled again"), stacklevel=3
        )


def _check(key: bytes, digest: bytes) -> bytes:
    """A checksum of one row: SQLite has none."""
    return hashlib.blake2b(key + digest, digest_size=8).digest()
