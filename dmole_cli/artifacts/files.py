"""Writing so that a file is either complete under its name or not there at all, and digests of what is there."""

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

# A full disk, a used-up quota, a file larger than the system or its limits allow.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; rename it to `path` when the body ends well, delete it otherwise.

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
        with suppress(OSError):  # what went wrong was said already
            temporary.unlink(missing_ok=True)


def _clear_left_over(path: Path) -> None:
    """Delete what a process that was killed in the middle of writing `path` has left; others may still be writing."""
    for temporary in path.parent.glob(f".{path.name}.*.tmp"):
        process = temporary.name.split(".")[-2]
        if process.isdecimal() and not _alive(int(process)):
            temporary.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's process
        return True
    return True


def unwritable(path: Path, error: OSError) -> DmoleError:
    """Turn an operating system's refusal into a message with the way out."""
    if error.errno in FULL:
        return DmoleError(f"no space left to write {path}", "free some disk space and run the same command again")
    return DmoleError(
        f"cannot write {path}: {error.strerror or error}", "check the folder's permissions or pass another --run"
    )


def write_json(path: Path, value: Any) -> None:
    """Write a JSON document, two spaces of indent, key order kept."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def digest_of_file(path: Path) -> str:
    """sha256 of a file's bytes, hexadecimal; a file that is still the same is read once in a process."""
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
    """What `digest_of` gives for the list of these values, which are held one at a time."""
    digest, before = hashlib.sha256(b"["), b""
    for value in values:
        digest.update(before + _canonical(value))
        before = b","
    digest.update(b"]")
    return digest.hexdigest()


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str).encode()
