"""JSON and TOML from outside: regular files only, of bounded size, nesting and numbers.

All functions raise OSError for a file that cannot be read, and ValueError for content that is not accepted; their callers know
what the file is and put it into an error of theirs.
"""

from __future__ import annotations

import json
import os
import re
import stat
import tomllib
from pathlib import Path
from typing import Any

from dmole_cli.settings.limits import TooMuchWork, bounded

MAX_DEPTH = 100  # nested lists and tables
MAX_DIGITS = 300  # of an integer in JSON: more than a float can hold
MAX_BYTES = 64 << 20
MAX_TOML, TOML_SECONDS = 1 << 20, 5.0
INT64 = range(-(2**63), 2**63)
# Half of a surrogate pair, as JSON can escape it; UTF-8 and tokenizers cannot encode it.
_SURROGATE = re.compile("[\ud800-\udfff]")


def require_regular(path: Path) -> None:
    """Refuse what has no end or may never answer: devices, named pipes, sockets; also folders.

    Raises:
        OSError: there is no such file, it cannot be read, or it is no regular file.
    """
    try:
        mode = path.stat().st_mode
    except ValueError as error:  # a NUL character in the name
        raise OSError(f"{error} in its name") from error
    if not stat.S_ISREG(mode):
        raise OSError("it is a folder" if stat.S_ISDIR(mode) else "it is a device or a pipe, and not a regular file")


def read_document(path: Path, *, limit: int = MAX_BYTES) -> str:
    """The text of a regular file in UTF-8.

    Raises:
        OSError: as for `require_regular`.
        ValueError: the file is larger than `limit` bytes, or not UTF-8.
    """
    require_regular(path)
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        content = b"" if size > limit else file.read(limit + 1)
    if max(size, len(content)) > limit:
        raise ValueError(f"it has more than {limit >> 20} MiB")
    return content.decode("utf-8-sig")


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file.

    Raises:
        OSError, ValueError: see the module.
    """
    text = read_document(path, limit=MAX_TOML)
    try:
        # The parser's time is quadratic in the parts of a dotted key.
        with bounded(seconds=TOML_SECONDS):
            table = tomllib.loads(text)
    except TooMuchWork as error:
        raise ValueError(f"it takes more than {TOML_SECONDS:g} seconds to parse") from error
    except tomllib.TOMLDecodeError:
        raise
    except ValueError as error:  # the interpreter's own limit
        raise ValueError("an integer of too many digits") from error
    except RecursionError as error:
        raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep") from error
    _require_bounded(table)
    return table


def read_json(path: Path) -> Any:
    """A JSON file.

    Raises:
        OSError, ValueError: see the module.
    """
    return parse_json(read_document(path))


def parse_json(text: str | bytes) -> Any:
    """Parse JSON of bounded nesting and numbers.

    Raises:
        ValueError: see the module.
    """
    text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
    value, end = decode(text, len(text) - len(text.lstrip(" \t\r\n")))
    if text[end:].strip(" \t\r\n"):
        raise json.JSONDecodeError("Extra data", text, end)
    return value


def decode(text: str, start: int) -> tuple[Any, int]:
    """Parse the JSON value at `start` of a text; returns it and its end.

    Raises:
        ValueError: as `parse_json`; a JSONDecodeError where more text may help.
    """
    try:
        value, end = _DECODER.raw_decode(text, start)
    except RecursionError as error:
        raise ValueError(f"nested more than {MAX_DEPTH} levels deep") from error
    if text.count("[", start, end) + text.count("{", start, end) > MAX_DEPTH:
        _require_bounded(value)
    return value, end


def has_surrogates(value: Any) -> bool:
    """Whether a text anywhere in a JSON value has half of a surrogate pair."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            if _SURROGATE.search(item):
                return True
        elif isinstance(item, dict):
            pending += [*item, *item.values()]
        elif isinstance(item, list):
            pending += item
    return False


def _integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"an integer of more than {MAX_DIGITS} digits")
    return int(text)


_DECODER = json.JSONDecoder(parse_int=_integer)


def _require_bounded(value: Any) -> None:
    """Refuse deep nesting and integers beyond 64 bits; without recursion."""
    level, pending = 0, [value]
    while pending:
        level += 1
        if level > MAX_DEPTH:
            raise ValueError(f"nested more than {MAX_DEPTH} levels deep")
        inner: list[Any] = []
        for item in pending:
            if isinstance(item, dict):
                inner += item.values()
            elif isinstance(item, list):
                inner += item
            elif isinstance(item, int) and item not in INT64:
                raise ValueError("an integer of more than 64 bits")
        pending = inner
