"""Results of work that is done batch by batch, on disk as soon as they exist, so that a process that is killed loses one batch.

Every process of a command appends to a file of its own, `cache/partial/<digest of the work>.<process>.jsonl`, a record per
batch, with a digest that shows whether the record is complete. Whoever does the same work again starts from these files. They
are deleted when the work is done, and those of work that was never done again after a month.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dmole_cli.artifacts.exclusion import exclusive
from dmole_cli.artifacts.files import digest_of, unwritable
from dmole_cli.processes import world

FORGOTTEN = 30 * 24 * 3600  # seconds after the last batch


class PartialResults:
    """The results of the batches of one piece of work.

    Args:
        stem: path of the files without their endings.
        waited: whether another command held the lock; it may have done the work.

    Attributes:
        done: numbers of the batches whose results an earlier run has stored.
    """

    def __init__(self, stem: Path, *, waited: bool) -> None:
        self._stem, self.waited = stem, waited
        self._own = stem.with_name(f"{stem.name}.{world().rank}.jsonl")
        self._file: int | None = None
        # Found by one process, so that all have the same: another one may already add to its file.
        self.done = world().from_first(lambda: frozenset(number for number, _ in self._read()))

    def missing(self, count: int) -> Sequence[int]:
        """The batches of 0..count-1 that this process has to compute."""
        return world().own([number for number in range(count) if number not in self.done])

    def add(self, number: int, result: Any) -> None:
        """Store the result of a batch, a JSON value.

        Raises:
            DmoleError: the file cannot be written.
        """
        record = {"digest": digest_of([number, result]), "batch": number, "result": result}
        try:
            if self._file is None:
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
                self._file = os.open(self._own, flags, 0o666)
            # A record that an earlier process did not complete ends here.
            line = f"\n{json.dumps(record, ensure_ascii=True)}\n".encode()
            while line:
                line = line[os.write(self._file, line) :]
        except OSError as error:
            raise unwritable(self._own, error) from error

    def all(self) -> Iterator[tuple[int, Any]]:
        """(number, result) of each batch, when every process has computed its own; every process must call it."""
        self.close()
        world().wait()
        return self._read()

    def _read(self) -> Iterator[tuple[int, Any]]:
        for path in self._files():
            with path.open("rb") as file:
                for line in file:
                    with suppress(ValueError, TypeError, KeyError):  # a record that is not complete
                        record = json.loads(line)
                        if record["digest"] == digest_of([record["batch"], record["result"]]):
                            yield record["batch"], record["result"]

    def _files(self) -> list[Path]:
        return sorted(self._stem.parent.glob(f"{self._stem.name}.*.jsonl"))

    def close(self) -> None:
        """Close the file of this process."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def delete(self) -> None:
        """Delete the files, when no process reads them any more, and forgotten ones of other work."""
        world().wait()
        if world().first:
            own, now = self._files(), time.time()
            for path in self._stem.parent.iterdir():
                with suppress(OSError):
                    if path in own or now - path.stat().st_mtime > FORGOTTEN:
                        path.unlink(missing_ok=True)


@contextmanager
def partial_results(root: Path, work: Any) -> Iterator[PartialResults]:
    """The results that exist of a piece of work; they are deleted when the body ends without an error.

    Only one command does the same work at a time; another one waits, and must then look what is left to do.

    Args:
        root: the directory that holds `cache`, a run directory or the one that several runs share.
        work: everything that the results depend on, and how they are divided into batches; a JSON value, the same in every
            process.

    Raises:
        DmoleError: the files cannot be written.
    """
    stem = root / "cache" / "partial" / digest_of(work)[:32]
    with exclusive(stem.with_name(f"{stem.name}.lock")) as waited:
        results = PartialResults(stem, waited=waited)
        try:
            yield results
        finally:
            results.close()
        results.delete()
