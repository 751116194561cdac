"""Atomic writes: a file is complete under its name, or does not exist; and digests of files and values."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from dmole_cli.errors import DmoleError

# Full disk, exhausted quota, file size limit.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` if the body succeeds, delete it otherwise.

    Raises:
        DmoleError: the disk is full, or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear_left_over(path)
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with suppress(OSError):  # the error itself is already raised
            temporary.unlink(missing_ok=True)


def _clear_left_over(path: Path) -> None:
    """Delete temporary files of processes that were killed while they wrote `path`; other processes may still be writing."""
    for temporary in path.parent.glob(f".{path.name}.*.tmp"):
        process = temporary.name.split(".")[-2]
        if process.isdecimal() and not _alive(int(process)):
            temporary.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # a process of another user
        return True
    return True


def unwritable(path: Path, error: OSError) -> DmoleError:
    """The error for a file that cannot be written."""
    if error.errno in FULL:
        return DmoleError(f"no space left to write {path}", "free some disk space and run the same command again")
    return DmoleError(
        f"cannot write {path}: {error.strerror or error}", "check the folder's permissions or pass another --run"
    )


def write_json(path: Path, value: Any) -> None:
    """Write a JSON document with an indent of two; the order of keys is preserved."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def digest_of_file(path: Path) -> str:
    """sha256 of a file's bytes, hexadecimal; an unchanged file is read once per process."""
    stat = path.stat()
    return _digest(path, (stat.st_ino, stat.st_size, stat.st_mtime_ns))


@lru_cache(maxsize=1024)
def _digest(path: Path, state: tuple[int, int, int]) -> str:
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
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str).encode()
