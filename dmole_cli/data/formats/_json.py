"""JSON files read a value at a time, however long they are: arrays, JSON lines, and documents that hold long lists."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from dmole_cli.data.formats._fields import Unusable, tell
from dmole_cli.errors import DmoleError

PIECE = 1 << 20  # characters read at a time
# A value that is cut off by the end of a piece fails within so many characters of it; any earlier failure is a mistake.
LONGEST_TOKEN = 16


@dataclass(frozen=True, slots=True)
class Member:
    """One value of a JSON document whose top is an object.

    Attributes:
        group: its key at the top.
        key: its key in that member where that is an object, else empty.
        value: an element of a list, a value of an object, or the member itself.
        place: where it stands, for messages.
    """

    group: str
    key: str
    value: Any
    place: str


def records(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield (where it stands, record) from a JSON array or from JSON lines, told apart by the first character.

    Raises:
        DmoleError: the file is missing or unreadable; names the line.
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
                tell(Unusable(f"{path}, line {number}: not JSON ({error.msg})", "mend or remove the line"))
            else:
                yield f"line {number}", value


def members(path: Path) -> Iterator[Member]:
    """Yield the values of a document such as `{"images": [...], "annotations": [...]}`; a top-level array has no group.

    Raises:
        DmoleError: the file is missing, unreadable, or neither an object nor an array.
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
    """Yield the keys of a document whose top is an object, each with its whole value.

    Raises:
        DmoleError: the file is missing, unreadable, or no object.
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
        # Lines end at "\n" alone: JSON allows U+2028 inside a text.
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            yield file
    except FileNotFoundError as error:
        raise DmoleError(f"missing annotation file {path}", "check [data] of the task card or --data-root") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DmoleError(f"cannot read the annotation file {path}: {error}", "it must be JSON in UTF-8") from error


class _Text:
    """A JSON text of which only the piece around the current place is held."""

    def __init__(self, path: Path, file: TextIO) -> None:
        self.path, self.file = path, file
        self.held, self.at, self.lines, self.ended = "", 0, 0, False

    def peek(self) -> str:
        """The next character that is no white space, empty at the end."""
        while True:
            while self.at < len(self.held) and self.held[self.at] in " \t\r\n":
                self.at += 1
            if self.at < len(self.held) or not self._more():
                return self.held[self.at : self.at + 1]

    def value(self) -> Any:
        """The value that starts here, whole."""
        self.peek()
        while True:
            try:
                value, end = json.JSONDecoder().raw_decode(self.held, self.at)
            except json.JSONDecodeError as error:
                cut = error.pos >= len(self.held) - LONGEST_TOKEN or error.msg.startswith("Unterminated string")
                if self.ended or not cut:
                    raise self._wrong(error.msg, error.pos) from error
            else:
                # A number near the end may go on in the next piece: "2" of "2.5".
                if self.ended or end <= len(self.held) - LONGEST_TOKEN:
                    self.at = end
                    return value
            self._more()

    def elements(self) -> Iterator[Any]:
        """The values of the array that starts here."""
        self._take("[")
        if self.peek() == "]":
            self.at += 1
            return
        while True:
            yield self.value()
            if self._take(",]") == "]":
                return

    def names(self) -> Iterator[str]:
        """The keys of the object that starts here; whoever asks takes the value behind each before going on."""
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
        """Insist that nothing follows."""
        if self.peek():
            raise self._wrong("Extra data", self.at)

    def _take(self, allowed: str) -> str:
        found = self.peek()
        if not found or found not in allowed:
            raise self._wrong(f"Expecting {' or '.join(map(repr, allowed))}", self.at)
        self.at += 1
        return found

    def _more(self) -> bool:
        """Read on and let go of what was passed; at least as much as is held, so that a long value is read in few steps."""
        if self.ended:
            return False
        self.lines += self.held.count("\n", 0, self.at)
        self.held, self.at = self.held[self.at :], 0
        piece = self.file.read(max(PIECE, len(self.held)))
        self.held += piece
        self.ended = not piece
        return not self.ended

    def _wrong(self, what: str, position: int) -> DmoleError:
        line = 1 + self.lines + self.held.count("\n", 0, position)
        return DmoleError(f"{self.path}, line {line}: not JSON ({what})", "mend the file")
