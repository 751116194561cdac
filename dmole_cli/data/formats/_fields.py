"""The fields of one JSON record, read so that whatever is wrong is said with the file, the place and the field."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from string import ascii_uppercase
from typing import Any, NoReturn, TypeVar

from dmole_cli.errors import DmoleError

Made = TypeVar("Made")
SHOWN = 3
# What a record can be unusable for: its answer is `empty`, it is no `record` of the format, another file has no `annotation`.
Note = Callable[[str, int, Sequence[str]], None]
_NOTE: ContextVar[Note | None] = ContextVar("note", default=None)


class Unusable(DmoleError):
    """A record that cannot be used, of a `kind` (see `Note`)."""

    def __init__(self, message: str, hint: str, *, kind: str = "record") -> None:
        super().__init__(message, hint)
        self.kind = kind


@contextmanager
def noting(note: Note) -> Iterator[None]:
    """While this lasts, what cannot be used is told to `note` (kind, how many, the first few in words) and left out,
    instead of being an error: to look at data as a whole, never to train on them."""
    token = _NOTE.set(note)
    try:
        yield
    finally:
        _NOTE.reset(token)


def noted() -> bool:
    """Whether records that cannot be used are left out at present."""
    return _NOTE.get() is not None


def tell(error: Unusable) -> None:
    """Raise it, or have it noted."""
    note = _NOTE.get()
    if note is None:
        raise error
    note(error.kind, 1, [error.message])


def usable(places: Iterable[tuple[str, Any]], read: Callable[[str, Any], Iterable[Made]]) -> Iterator[Made]:
    """What is read from each (place, value), all of a record or nothing.

    Raises:
        Unusable: a record cannot be used, and nobody notes it.
    """
    for place, value in places:
        try:
            made = list(read(place, value))
        except Unusable as error:
            tell(error)
        else:
            yield from made


class Record:
    """One record of an annotation file.

    Args:
        path: the file.
        place: where it stands in it.
        value: what stands there; anything but an object is refused.
        hint: what a record looks like.
    """

    def __init__(self, path: Path, place: str, value: Any, *, hint: str) -> None:
        self.path, self.place, self.hint = path, place, hint
        if not isinstance(value, dict):
            self.refuse("a record must be an object")
        self.value: dict[str, Any] = value

    def refuse(self, what: str, hint: str = "", *, kind: str = "record") -> NoReturn:
        """Say what is wrong with it (`kind`: see `Note`)."""
        raise Unusable(f"{self.path}, {self.place}: {what}", hint or self.hint, kind=kind)

    def text(self, key: str) -> str:
        """A text that is not empty; a number counts as its digits."""
        value = self.value.get(key)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str):
            self.refuse(f"'{key}' must be a text, not {value!r}")
        if not value.strip():
            self.refuse(f"'{key}' is empty", kind="empty")
        return value.strip()

    def texts(self, key: str) -> list[str]:
        """A list of at least one text; numbers count as their digits."""
        value = self.value.get(key)
        if not isinstance(value, list) or not value or not all(isinstance(item, (str, int, float)) for item in value):
            self.refuse(f"'{key}' must be a list of texts")
        return [item if isinstance(item, str) else str(item) for item in value]

    def images(self, key: str = "image") -> tuple[str, ...]:
        """Names of picture files: a path, a list of paths, or none where the key is absent."""
        value = self.value.get(key) or []
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
            self.refuse(f"'{key}' must be a path or a list of paths", "leave it out for a row without picture")
        return tuple(names)

    def numbers(self, key: str, count: int) -> list[float]:
        """A list of so many numbers, also where it is written as a text."""
        value = self.value.get(key)
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except json.JSONDecodeError:
                value = None
        numbers = value if isinstance(value, list) else []
        if len(numbers) != count or not all(type(number) in (int, float) for number in numbers):
            self.refuse(f"'{key}' must be {count} numbers, not {self.value.get(key)!r}")
        return [float(number) for number in numbers]

    def length(self, key: str) -> float:
        """A number over 0."""
        value = self.value.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
            self.refuse(f"'{key}' must be a number over 0, not {value!r}")
        return value

    def named(self) -> dict[str, str]:
        """Its texts, which a prompt may name."""
        return {key: value for key, value in self.value.items() if isinstance(value, str)}


def identity(record: Record, key: str = "question_id") -> dict[str, Any]:
    """The record's own id for the details of a sample, where it has one."""
    return {"id": record.value[key]} if isinstance(record.value.get(key), (str, int)) else {}


def lettered(choices: Sequence[str]) -> str:
    """The options as the benchmarks write them, a line each: `A. two`."""
    return "\n".join(f"{letter}. {text}" for letter, text in zip(ascii_uppercase, choices, strict=False))


def letter_of(answer: Any, choices: Sequence[str]) -> str | None:
    """The letter of the right option, given as an index from 0, as a letter, or as the option's text; None if it is none."""
    letters = ascii_uppercase[: len(choices)]
    if isinstance(answer, bool):
        return None
    if isinstance(answer, int):
        return letters[answer] if 0 <= answer < len(letters) else None
    if isinstance(answer, str) and len(answer) == 1 and answer in letters:
        return answer
    return letters[list(choices).index(answer)] if answer in choices else None


def given_answers(record: Record) -> list[str]:
    """The answers that people gave to a question: a list of texts, or of objects with `answer`."""
    value = record.value.get("answers")
    if isinstance(value, list) and all(isinstance(item, Mapping) for item in value):
        value = [item.get("answer") for item in value]
    if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
        record.refuse("'answers' must be a list of texts, or of objects with 'answer'")
    return value


def most_given(answers: Iterable[str]) -> str:
    """The answer that most people gave; of several, the one that came first."""
    return Counter(answers).most_common(1)[0][0]


class Unannotated:
    """Ids that another file knows nothing of: counted to the end, so that a mistake is told in one go."""

    def __init__(self, path: Path, what: str) -> None:
        self.path, self.what, self.count, self.first = path, what, 0, list[str]()

    def add(self, name: object) -> None:
        """Note one."""
        self.count += 1
        if len(self.first) < SHOWN:
            self.first.append(str(name))

    def refuse(self) -> None:
        """Raise, or have it noted, if there was one."""
        note = _NOTE.get()
        if self.count and note is not None:
            note("annotation", self.count, [f"{self.path} has no {self.what} for {name}" for name in self.first])
        elif self.count:
            more = " ..." if self.count > len(self.first) else ""
            raise DmoleError(
                f"{self.path} has no {self.what} for {self.count} of the split's ids: {', '.join(self.first)}{more}",
                "check that both files belong together, or remove these records",
            )
