"""`usage/activation.sqlite`: which experts were active for the latest requests of a run.

A row per request with the names of its active experts, and nothing else: no content, no time. Only the latest `WINDOW` requests
are kept. Processes that write at the same time wait for each other by SQLite's locks.

The database has a rollback journal, which every local and most network file systems support; the next process that opens it
undoes what a killed one had not completed. Pages are not synchronised to the disk: a power failure may damage the file, which
is then replaced by an empty one, since no artifact is made from these counts.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from dmole_cli.errors import DmoleError, DmoleWarning
from dmole_cli.processes import is_first

WINDOW = 10_000  # requests
# Seconds to wait for another process that writes.
TIMEOUT = 10.0
APPLICATION = int.from_bytes(b"dmol", "big")  # in the header of the file: it is not another program's
SCHEMA = "CREATE TABLE IF NOT EXISTS requests (number INTEGER PRIMARY KEY, experts TEXT NOT NULL)"
DELETE = "delete the file: it holds nothing but counts, and begins again"


@dataclass(frozen=True)
class Activation:
    """How often experts were active in the latest requests.

    Attributes:
        requests: number of requests that were counted.
        without_expert: requests that no expert recognised.
        experts: expert -> number of requests in which it was active, the most frequent first. A request may have several.
    """

    requests: int = 0
    without_expert: int = 0
    experts: Mapping[str, int] = field(default_factory=dict)


class _Foreign(sqlite3.DatabaseError):
    """A database of another program."""


class Usage:
    """Experts of the latest requests of a run; may be used by several threads and processes.

    Args:
        path: the SQLite file; made by the first `record`.
        window: number of requests that are kept.
    """

    def __init__(self, path: Path, *, window: int = WINDOW) -> None:
        self.path, self.window = path, window
        self._lock = threading.Lock()
        self._stored: sqlite3.Connection | None = None
        self._inode = 0

    def record(self, active: Sequence[tuple[str, ...]]) -> None:
        """Add requests in one transaction, and delete those that leave the window.

        Never fails, because answers do not depend on it. A damaged file is replaced with a warning. A folder that cannot be
        written, another program's database, or a file that another process has locked for `TIMEOUT` gives a warning alone.
        Of several processes of a command, the first one records.

        Args:
            active: names of the active experts of each request, in the order of the requests; empty where none recognised it.
        """
        if not active or not is_first():
            return
        rows = [(json.dumps(names, ensure_ascii=False),) for names in active[-self.window :]]
        with self._lock:
            try:
                try:
                    self._write(rows)
                except sqlite3.DatabaseError as error:
                    if not _is_damage(error) or isinstance(error, _Foreign):
                        raise
                    self._discard(error)
                    self._write(rows)
            except (sqlite3.Error, OSError) as error:
                self._close()
                self._warn(f"cannot write {self.path}: {error}; the use of experts is not recorded")

    def counts(self, last: int | None = None) -> Activation:
        """Count over the latest `last` requests, by default all that are kept; zeros without a file.

        Raises:
            DmoleError: the file is damaged, is not a store of dmole, or is unreadable.
        """
        if not self.path.exists():
            return Activation()
        query = "SELECT experts, COUNT(*) FROM requests WHERE number > ? GROUP BY experts"
        try:
            # Its own connection: the file may be readable and not writable.
            stored = sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=ro", uri=True, timeout=TIMEOUT)
            try:
                stored.execute("BEGIN")
                _require_ours(stored)
                newest = stored.execute("SELECT MAX(number) FROM requests").fetchone()[0] or 0
                kept = self.window if last is None else min(last, self.window)
                groups = [(list(json.loads(names)), count) for names, count in stored.execute(query, (newest - kept,))]
            finally:
                stored.close()
            return _counted(groups)
        except (sqlite3.Error, ValueError, TypeError) as error:
            if isinstance(error, sqlite3.OperationalError) and not _is_damage(error):
                raise DmoleError(
                    f"cannot read {self.path}: {error}", "check the folder's permissions, and run the command again"
                ) from error
            raise DmoleError(f"{self.path} is damaged: {error}", DELETE) from error

    def close(self) -> None:
        """Close the file; `record` opens it again."""
        with self._lock:
            self._close()

    def _write(self, rows: Sequence[tuple[str]]) -> None:
        stored = self._opened()
        with stored:
            stored.execute("BEGIN IMMEDIATE")
            stored.executemany("INSERT INTO requests (experts) VALUES (?)", rows)
            stored.execute(
                "DELETE FROM requests WHERE number <= (SELECT MAX(number) FROM requests) - ?", (self.window,)
            )

    def _opened(self) -> sqlite3.Connection:
        """The connection for writing; a new one where the file was deleted, perhaps by another process that found damage."""
        if self._stored is not None:
            with suppress(OSError):
                if self.path.stat().st_ino == self._inode:
                    return self._stored
            self._close()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._stored = sqlite3.connect(self.path, timeout=TIMEOUT, isolation_level=None, check_same_thread=False)
        self._stored.execute("PRAGMA synchronous = OFF")
        with self._stored as stored:
            stored.execute("BEGIN IMMEDIATE")
            if stored.execute("SELECT COUNT(*) FROM sqlite_master").fetchone() == (0,):
                stored.execute(f"PRAGMA application_id = {APPLICATION}")
                stored.execute(SCHEMA)
            _require_ours(stored)
        self._inode = self.path.stat().st_ino
        return self._stored

    def _close(self) -> None:
        if self._stored is not None:
            with suppress(sqlite3.Error):
                self._stored.close()
            self._stored = None

    def _discard(self, error: Exception) -> None:
        """Delete a damaged file, with what SQLite keeps beside it."""
        self._close()
        for end in ("", "-journal", "-wal", "-shm"):
            Path(f"{self.path}{end}").unlink(missing_ok=True)
        self._warn(f"{self.path} was damaged ({error}); the use of experts is counted from now on")

    def _warn(self, text: str) -> None:
        warnings.warn(DmoleWarning(text), stacklevel=3)


def _require_ours(stored: sqlite3.Connection) -> None:
    if stored.execute("PRAGMA application_id").fetchone() != (APPLICATION,):
        raise _Foreign("it is not a file of dmole")


def _is_damage(error: sqlite3.Error) -> bool:
    """Whether the content of the file is wrong, and not its place: it is locked, or the folder is read-only."""
    return not isinstance(error, sqlite3.OperationalError) or "no such" in str(error)


def _counted(groups: Sequence[tuple[Sequence[str], int]]) -> Activation:
    """Add up requests with the same experts."""
    totals: dict[str, int] = {}
    for names, count in groups:
        for name in names:
            totals[name] = totals.get(name, 0) + count
    return Activation(
        requests=sum(count for _, count in groups),
        without_expert=sum(count for names, count in groups if not names),
        experts=dict(sorted(totals.items(), key=lambda item: (-item[1], item[0]))),
    )
