"""Atomic writes: a file is complete under its name, or does not exist; and digests of files and values."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import IO, Any

from dmole_cli.errors import DmoleError
from dmole_cli.processes import is_first

# Full disk, exhausted quota, file size limit.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def replacing(path: Path, *, by_all: bool = False) -> Iterator[IO[bytes]]:
    """Yield a new binary file beside `path`; rename it to `path` if the body succeeds, delete it otherwise.

    The file has a random name and is created exclusively, so that neither a symbolic link nor another process, whatever its
    process number, can take its place. File and folder are synchronised to the disk before and after the rename.

    Of several processes of a command, only the first one writes; what the others write is dropped.

    Args:
        path: the file.
        by_all: every process writes, because each may run on a machine of its own, and all write the same bytes.

    Raises:
        DmoleError: the disk is full, or the folder cannot be written.
    """
    if not by_all and not is_first():
        yield BytesIO()
        return
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _delete_left_over(path)
        descriptor, temporary = _create(path)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(path)
        temporary = None
        _synchronise(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        if temporary is not None:
            with suppress(OSError):  # the error itself is already raised
                temporary.unlink(missing_ok=True)


def _create(path: Path) -> tuple[int, Path]:
    """Create and lock a temporary file for `path`; returns its descriptor and name."""
    while True:
        temporary = path.with_name(_temporary_name(path.name, secrets.token_hex(8)))
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        # Another process that deletes left-over files may have taken this one between its creation and the lock.
        if lock(descriptor) and temporary.exists():
            return descriptor, temporary
        os.close(descriptor)


def _temporary_name(name: str, suffix: str) -> str:
    # At most 255 bytes, whatever the length of the final name.
    stem = name.encode("utf-8", "surrogateescape")[:200].decode("utf-8", "ignore")
    return f".{stem}.{suffix}.tmp"


def _delete_left_over(path: Path) -> None:
    """Delete temporary files of processes that were killed while they wrote `path`; a running one holds a lock on its file."""
    for temporary in path.parent.glob(glob.escape(_temporary_name(path.name, "")[: -len(".tmp")]) + "*.tmp"):
        with suppress(OSError):
            descriptor = os.open(temporary, os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
            try:
                if lock(descriptor):
                    temporary.unlink(missing_ok=True)
            finally:
                os.close(descriptor)


def lock(descriptor: int) -> bool:
    """Take an exclusive lock that ends with the process; False where another process holds it."""
    try:
        import fcntl
    except ImportError:  # no such locks on Windows, where an open file cannot be deleted either
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _synchronise(folder: Path) -> None:
    """Make a rename in this folder durable, where the file system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def unwritable(path: Path, error: OSError) -> DmoleError:
    """The error for a file that cannot be written."""
    if error.errno in FULL:
        return DmoleError(f"no space left to write {path}", "free some disk space and run the same command again")
    return DmoleError(
        f"cannot write {path}: {error.strerror or error}", "check the folder's permissions or pass another --run"
    )


def write_json(path: Path, value: Any) -> None:
    """Write a JSON document with an indent of two; the order of keys is preserved."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8."""
    with replacing(path) as file:
        file.write(text.encode("utf-8"))


# Inode, size in bytes, modification and change time in nanoseconds.
FileState = tuple[int, int, int, int]


def state_of(path: Path) -> FileState:
    """What changes when a file is written: a key for what was read from it."""
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def digest_of_file(path: Path) -> str:
    """sha256 of a file's bytes, hexadecimal; an unchanged file is read once per process."""
    return _digest(path, state_of(path))


@lru_cache(maxsize=1024)
def _digest(path: Path, state: FileState) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(value: Any) -> str:
    """sha256 of a JSON value in canonical form, hexadecimal."""
    return hashlib.sha256(_canonical(value)).hexdigest()


def digest_of_each(values: Iterable[Any]) -> str:
    """`digest_of` of the list of these values, without holding the list."""
    digest, before = hashlib.sha256(b"["), b""
    for value in values:
        digest.update(before + _canonical(value))
        before = b","
    digest.update(b"]")
    return digest.hexdigest()


def _canonical(value: Any) -> bytes:
    return _ENCODER.encode(value).encode()


_ENCODER = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
