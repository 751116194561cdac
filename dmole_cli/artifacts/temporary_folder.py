"""A folder that is filled under a temporary name, so that it appears complete by a rename."""

from __future__ import annotations

import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dmole_cli.artifacts.files import lock

SUFFIX = ".export.tmp"  # of temporary folders


@contextmanager
def temporary_beside(folder: Path) -> Iterator[Path]:
    """A temporary folder, locked while it is in use; those of processes that were killed are deleted."""
    prefix = f".{folder.name}."
    for left_over in folder.parent.glob(f"{glob.escape(prefix)}*{SUFFIX}"):
        if (opened := _locked(left_over)) is not None:
            shutil.rmtree(left_over, ignore_errors=True)
            os.close(opened)
    opened = None
    while opened is None:  # another process may delete the folder before it is locked
        temporary = folder.with_name(f"{prefix}{secrets.token_hex(8)}{SUFFIX}")
        temporary.mkdir()
        opened = _locked(temporary)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(opened)


def _locked(folder: Path) -> int | None:
    """An open file that locks a folder; None where another process holds the lock, or the folder is gone."""
    try:
        opened = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    if lock(opened) and folder.exists():
        return opened
    os.close(opened)
    return None
