"""What a check has found in images, on disk every few seconds, so that a check that was killed does not open them again."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar, cast

from dmole_cli.artifacts.files import digest_of
from dmole_cli.artifacts.partial import PartialResults
from dmole_cli.data.formats._arrow import cache_folder
from dmole_cli.data.sample import Sample
from dmole_cli.errors import DmoleError
from dmole_cli.processes import world

Found = TypeVar("Found")
SAVED_EVERY = 10.0  # seconds; a check that takes less stores nothing


class CheckedImages:
    """Results of calls that read images, by blocks of rows.

    Within a block, calls come in the same order whenever this block and all before it have the same rows and image files; only
    then, a stored block is used. Where nothing can be stored, nothing is, without an error. Several processes store nothing.

    Args:
        work: what identifies the check; a JSON value.
    """

    def __init__(self, work: Any) -> None:
        self._stored: PartialResults | None = None
        self._known: dict[int, dict[str, Any]] = {}
        if world().size == 1:
            with suppress(OSError):
                self._stored = PartialResults(cache_folder() / "checks" / digest_of(work)[:32], waited=False)
                self._known = dict(self._stored.read())
        self._rows = hashlib.sha256()  # over all rows so far
        self._recorded: Iterator[Any] | None = None
        self._new: list[Any] = []
        self._pending: dict[int, dict[str, Any]] = {}
        self._saved = time.monotonic()

    @contextmanager
    def block(self, number: int, rows: Sequence[Sample]) -> Iterator[None]:
        """Context of the calls for a block of rows; blocks come in order."""
        for row in rows:
            self._rows.update(repr((row.sample_id, row.question, row.sources, [*map(_state, row.files)])).encode())
        digest, known = self._rows.hexdigest(), self._known.pop(number, None)
        self._recorded = iter(known["found"]) if known is not None and known["rows"] == digest else None
        self._new = []
        yield
        if self._recorded is None and self._new:
            self._pending[number] = {"rows": digest, "found": self._new}
            if time.monotonic() - self._saved >= SAVED_EVERY:
                self._save()

    def once(self, call: Callable[[], Found]) -> Found:
        """What a call returns, a JSON value: stored by an earlier check, or now."""
        if self._recorded is not None:
            return cast(Found, next(self._recorded))
        found = call()
        self._new.append(found)
        return found

    def _save(self) -> None:
        if self._stored is not None:
            try:
                for number, record in self._pending.items():
                    self._stored.add(number, record)
            except DmoleError:  # the disk is full, or the folder cannot be written
                self._stored = None
        self._pending.clear()
        self._saved = time.monotonic()

    def close(self) -> None:
        """Delete what is stored, after a complete check."""
        if self._stored is not None:
            self._stored.close()
            with suppress(OSError):
                self._stored.delete()


def _state(file: Path) -> tuple[str, int, int] | tuple[str]:
    """What changes when an image file is written."""
    try:
        status = file.stat()
    except (OSError, ValueError):  # ValueError: a null byte in the name
        return (str(file),)
    return str(file), status.st_size, status.st_mtime_ns
