"""Streams JSON files of any size value by value: arrays, JSON lines, and objects that contain long lists."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from dmole_cli.data.invalid_records import InvalidRecord, report_or_raise
from dmole_cli.errors import DmoleError

PIECE = 1 << 20  # characters read at a time
# A value that the end of a piece cuts off fails to parse within this many characters of the end; an earlier failure is an
# error of the file.
LONGEST_TOKEN = 16


@dataclass(frozen=True, slots=True)
class Member:
    """One value of a JSON document whose top level is an object.

    Attributes:
        group: the key at the top level.
        key: the key at the second level if that is an object, else empty.
        value: an element of the second-level list, a value of the second-level object, or the top-level value itself.
        place: location in the file, for error messages.
    """

    group: str
    key: str
    value: Any
    place: str


def records(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield (place, record) from a JSON array or from JSON lines; the first character decides which.

    Raises:
        DmoleError: the file is missing or unreadable, or not JSON; names the line.
    """
    with _opened(path) as file:
        text = _Text(path, file)
        if text.peek() == "[":
            yield from ((f"record {number}", value) for number, value in enumerate(text.elements(), start=1))
            text.end()
            return
    with _opened(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except json.JSONDecodeError as error:
                message = f"{path}, line {number}: not JSON ({error.msg})"
                report_or_raise(InvalidRecord(message, "fix or remove the line"))
            else:
                yield f"line {number}", value


def members(path: Path) -> Iterator[Member]:
    """Yield the values of a document such as `{"images": [...], "annotations": [...]}`; those of a top-level array have no group.

    Raises:
        DmoleError: the file is missing or unreadable, or neither an object nor an array.
    """
    with _opened(path) as file:
        text = _Text(path, file)
        first = text.peek()
        if first == "[":
            for number, value in enumerate(text.elements(), start=1):
                yield Member("", "", value, f"record {number}")
        elif first == "{":
            for group in text.names():
                yield from _member(text, group)
        else:
            raise DmoleError(f"{path}: a JSON object or array is expected", "check [data] of the task card")
        text.end()


def entries(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield (key, value) of a document whose top level is an object.

    Raises:
        DmoleError: the file is missing or unreadable, or not an object.
    """
    with _opened(path) as file:
        text = _Text(path, file)
        for key in text.names():
            yield key, text.value()
        text.end()


def _member(text: _Text, group: str) -> Iterator[Member]:
    first = text.peek()
    if first == "[":
        for number, value in enumerate(text.elements(), start=1):
            yield Member(group, "", value, f"{group}, record {number}")
    elif first == "{":
        for key in text.names():
            yield Member(group, key, text.value(), f"{group}, key {key}")
    else:
        yield Member(group, "", text.value(), group)


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    try:
        # Only "\n" ends a line: JSON allows U+2028 inside a text.
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            yield file
    except FileNotFoundError as error:
        raise DmoleError(f"missing annotation file {path}", "check [data] of the task card or --data-root") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DmoleError(f"cannot read the annotation file {path}: {error}", "it must be JSON in UTF-8") from error


class _Text:
    """An incremental JSON parser that buffers only the text around the current position."""

    def __init__(self, path: Path, file: TextIO) -> None:
        self.path, self.file = path, file
        self.buffer, self.at, self.lines, self.ended = "", 0, 0, False

    def peek(self) -> str:
        """The next character that is not white space; empty at the end of the file."""
        while True:
            while self.at < len(self.buffer) and self.buffer[self.at] in " \t\r\n":
                self.at += 1
            if self.at < len(self.buffer) or not self._more():
                return self.buffer[self.at : self.at + 1]

    def value(self) -> Any:
        """Parse the value that starts at the current position."""
        self.peek()
        while True:
            try:
                value, end = json.JSONDecoder().raw_decode(self.buffer, self.at)
            except json.JSONDecodeError as error:
                cut = error.pos >= len(self.buffer) - LONGEST_TOKEN or error.msg.startswith("Unterminated string")
                if self.ended or not cut:
                    raise self._wrong(error.msg, error.pos) from error
            else:
                # A number at the end of the buffer may continue in the next piece: "2" of "2.5".
                if self.ended or end <= len(self.buffer) - LONGEST_TOKEN:
                    self.at = end
                    return value
            self._more()

    def elements(self) -> Iterator[Any]:
        """Parse the array that starts at the current position, element by element."""
        self._take("[")
        if self.peek() == "]":
            self.at += 1
            return
        while True:
            yield self.value()
            if self._take(",]") == "]":
                return

    def names(self) -> Iterator[str]:
        """Yield the keys of the object that starts here; the caller must parse each key's value before the next key."""
        self._take("{")
        if self.peek() == "}":
            self.at += 1
            return
        while True:
            key = self.value()
            if not isinstance(key, str):
                raise self._wrong("Expecting a key in quotes", self.at)
            self._take(":")
            yield key
            if self._take(",}") == "}":
                return

    def end(self) -> None:
        """Raise an error if anything but white space follows."""
        if self.peek():
            raise self._wrong("Extra data", self.at)

    def _take(self, allowed: str) -> str:
        found = self.peek()
        if not found or found not in allowed:
            raise self._wrong(f"Expecting {' or '.join(map(repr, allowed))}", self.at)
        self.at += 1
        return found

    def _more(self) -> bool:
        """Drop the parsed text and read the next piece, at least as long as the buffer, so a long value needs few steps."""
        if self.ended:
            return False
        self.lines += self.buffer.count("\n", 0, self.at)
        self.buffer, self.at = self.buffer[self.at :], 0
        piece = self.file.read(max(PIECE, len(self.buffer)))
        self.buffer += piece
        self.ended = not piece
        return not self.ended

    def _wrong(self, what: str, position: int) -> DmoleError:
        line = 1 + self.lines + self.buffer.count("\n", 0, position)
        return DmoleError(f"{self.path}, line {line}: not JSON ({what})", "fix the file")
