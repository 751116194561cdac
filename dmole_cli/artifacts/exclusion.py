"""Exclusion of commands that do the same work in one run directory and do not know of each other."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dmole_cli.artifacts.files import lock, unwritable
from dmole_cli.errors import DmoleWarning
from dmole_cli.processes import world

POLLING = 0.2  # seconds between two attempts to take a lock


@contextmanager
def exclusive(path: Path) -> Iterator[bool]:
    """Hold a lock file while the body runs; wait for the command that holds it. Several processes of a command hold it together.

    The lock ends with the process, however it ends. On file systems without locks, nothing is excluded.

    Args:
        path: of the lock file, which exists only while the lock is held, or after a process that was killed.

    Yields:
        Whether another command held the lock before. It may have done the work.

    Raises:
        DmoleError: the file cannot be written.
    """
    if not world().first:
        yield world().share(False)
        return
    descriptor, waited = _acquired(path)
    try:
        yield world().share(waited)
    finally:
        # Deleted while it is locked: a process that has opened it meanwhile notices that the name is gone.
        with suppress(OSError):
            path.unlink(missing_ok=True)
        os.close(descriptor)


def _acquired(path: Path) -> tuple[int, bool]:
    """The descriptor of the locked file, and whether another process held it."""
    waited = False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
            if lock(descriptor) and _is_named(path, descriptor):
                return descriptor, waited
            os.close(descriptor)
            if not waited:
                warnings.warn(DmoleWarning(f"waiting for another dmole command that holds {path}"), stacklevel=3)
            waited = True
            time.sleep(POLLING)
    except OSError as error:
        raise unwritable(path, error) from error


def _is_named(path: Path, descriptor: int) -> bool:
    """Whether a name still refers to an open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except OSError:
        return False
