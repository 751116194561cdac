"""Streams JSON files of any size value by value: arrays, JSON lines, and objects that contain long lists."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from dmole_cli.data.invalid_records import InvalidRecord, report_or_raise
from dmole_cli.errors import DmoleError
from dmole_cli.settings.documents import decode, has_surrogates, parse_json, require_regular

SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
PIECE = 1 << 20  # characters read at a time
# A value that the end of a piece cuts off fails to parse within this many characters of the end; an earlier failure is an
# error of the file.
LONGEST_TOKEN = 16
LONGEST_VALUE = 1 << 28  # characters of a line, or of a value, that are held in memory


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
            yield from ((member.place, member.value) for member in _elements(text, ""))
            text.end()
            return
    with _opened(path) as file:
        for number, line in enumerate(_lines(path, file), start=1):
            if not line.strip():
                continue
            try:
                value = parse_json(line)
            except ValueError as error:
                said = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
                report_or_raise(InvalidRecord(f"{path}, line {number}: not JSON ({said})", "fix or remove the line"))
            else:
                if _encodable(path, f"line {number}", value, line):
                    yield f"line {number}", value


def _lines(path: Path, file: TextIO) -> Iterator[str]:
    while line := file.readline(LONGEST_VALUE):
        if len(line) == LONGEST_VALUE:
            raise DmoleError(f"{path} has a line of more than {LONGEST_VALUE >> 20} million characters", "fix the file")
        yield line


def _encodable(path: Path, place: str, value: Any, text: str) -> bool:
    """Whether a record can be used; not if it has half of a surrogate pair, which tokenizers and files cannot encode.

    Args:
        path: the file.
        place: of the record.
        value: the record, with its key if it has one.
        text: the JSON that it was parsed from.
    """
    if not (SURROGATE.search(text) and has_surrogates(value)):
        return True
    message = (
        f"{path}, {ascii(place)[1:-1]}: a text is not Unicode: it has half of a surrogate pair (\\ud800 to \\udfff)"
    )
    report_or_raise(InvalidRecord(message, "fix or remove the record"))
    return False


def members(path: Path) -> Iterator[Member]:
    """Yield the values of a document such as `{"images": [...], "annotations": [...]}`; those of a top-level array have no group.

    Raises:
        DmoleError: the file is missing or unreadable, or neither an object nor an array.
    """
    with _opened(path) as file:
        text = _Text(path, file)
        first = text.peek()
        if first == "[":
            yield from _elements(text, "")
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
        yield from ((member.key, member.value) for member in _values(text, ""))
        text.end()


def _member(text: _Text, group: str) -> Iterator[Member]:
    first = text.peek()
    if first == "[":
        yield from _elements(text, group)
    elif first == "{":
        yield from _values(text, group)
    else:
        value = text.value()
        if _encodable(text.path, group, [group, value], f"{json.dumps(group)} {text.last}"):
            yield Member(group, "", value, group)


def _elements(text: _Text, group: str) -> Iterator[Member]:
    for number, value in enumerate(text.elements(), start=1):
        place = f"{group}, record {number}" if group else f"record {number}"
        if _encodable(text.path, place, value, text.last):
            yield Member(group, "", value, place)


def _values(text: _Text, group: str) -> Iterator[Member]:
    for key in text.names():
        before, value = text.last, text.value()
        place = f"{group}, key {key}" if group else f"key {key}"
        if _encodable(text.path, place, [key, value], before + text.last):
            yield Member(group, key, value, place)


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    try:
        require_regular(path)
        # Only "\n" ends a line: JSON allows U+2028 inside a text.
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            yield file
    except FileNotFoundError as error:
        raise DmoleError(f"missing annotation file {path}", "check [data] of the task card or --data-root") from error
    except (OSError, UnicodeError) as error:
        raise DmoleError(f"cannot read the annotation file {path}: {error}", "it must be JSON in UTF-8") from error


class _Text:
    """An incremental JSON parser that buffers only the text around the current position."""

    def __init__(self, path: Path, file: TextIO) -> None:
        self.path, self.file = path, file
        self.buffer, self.at, self.lines, self.ended = "", 0, 0, False
        self.last = ""  # the text of the last value

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
                value, end = decode(self.buffer, self.at)
            except json.JSONDecodeError as error:
                cut = error.pos >= len(self.buffer) - LONGEST_TOKEN or error.msg.startswith("Unterminated string")
                if self.ended or not cut:
                    raise self._wrong(error.msg, error.pos) from error
            except ValueError as error:
                # A number that the end of the buffer cuts off is too long already.
                raise self._wrong(str(error), self.at) from error
            else:
                # A number at the end of the buffer may continue in the next piece: "2" of "2.5".
                if self.ended or end <= len(self.buffer) - LONGEST_TOKEN:
                    self.last, self.at = self.buffer[self.at : end], end
                    return value
            if len(self.buffer) - self.at > LONGEST_VALUE:
                raise self._wrong(f"a value of more than {LONGEST_VALUE >> 20} million characters", self.at)
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
