"""Typed access to the fields of a JSON record; errors name the file, the location and the field."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any, NoReturn, TypeGuard

from dmole_cli.data.formats._image_fields import image_names
from dmole_cli.data.invalid_records import InvalidRecord, report_or_raise

SHOWN = 3  # records that a message lists
LONGEST = 120  # characters of a value that a message shows
MAX_OPTIONS = len(ascii_uppercase)  # each option of a question has a letter


class Record:
    """One record of an annotation file.

    Args:
        path: the file.
        place: location in the file, for error messages.
        value: the JSON value; anything but an object is invalid.
        hint: what a valid record looks like, for error messages.
    """

    def __init__(self, path: Path, place: str, value: Any, *, hint: str) -> None:
        self.path, self.place, self.hint = path, place, hint
        if not isinstance(value, dict):
            self.invalid("a record must be an object")
        self.value: dict[str, Any] = value

    def invalid(self, what: str, hint: str = "", *, kind: str = "record") -> NoReturn:
        """Raise `InvalidRecord` for this record; for `kind` see `invalid_records.Report`."""
        raise InvalidRecord(f"{self.path}, {self.place}: {what}", hint or self.hint, kind=kind)

    def text(self, key: str) -> str:
        """A text that is not empty, stripped; a finite number is converted to its digits."""
        value = as_text(self.value.get(key))
        if value is None and is_missing(self.value.get(key)):
            self.invalid(f"'{key}' has no value", kind="empty")
        if value is None:
            self.invalid(f"'{key}' must be a text, not {shown(self.value.get(key))}")
        if not value.strip():
            self.invalid(f"'{key}' is empty", kind="empty")
        return value.strip()

    def texts(self, key: str) -> list[str]:
        """A list of at least one text; finite numbers are converted to their digits."""
        value = self.value.get(key)
        texts = [as_text(item) for item in value] if isinstance(value, list) else []
        found = [text for text in texts if text is not None]
        if not texts or len(found) < len(texts):
            self.invalid(f"'{key}' must be a list of texts, not {shown(value)}")
        return found

    def answers(self, key: str) -> list[str]:
        """The correct answers, stripped: a text, or a list of texts; none of them is empty."""
        if not isinstance(self.value.get(key), list):
            return [self.text(key)]
        if not self.value[key]:
            self.invalid(f"'{key}' is empty", kind="empty")
        found = [text.strip() for text in self.texts(key)]
        if not all(found):
            self.invalid(f"'{key}' contains an empty text", kind="empty")
        return found

    def options(self, key: str) -> list[str]:
        """The options of a question: at least two texts, and at most one per letter."""
        found = self.texts(key)
        if not 2 <= len(found) <= MAX_OPTIONS:
            self.invalid(f"a question needs 2 to {MAX_OPTIONS} options, not {len(found)}")
        return found

    def images(self, key: str = "image") -> tuple[str, ...]:
        """Names of image files; none if the record names no image (see `_image_fields.image_names`)."""
        return image_names(self, key)

    def numbers(self, key: str, count: int) -> list[float]:
        """A list of exactly `count` finite numbers; a text that contains a JSON list is accepted, too."""
        value = self.value.get(key)
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                value = None
        numbers = value if isinstance(value, list) else []
        if len(numbers) != count or not all(is_finite(number) for number in numbers):
            self.invalid(f"'{key}' must be {count} numbers, all finite, not {shown(self.value.get(key))}")
        return [float(number) for number in numbers]

    def length(self, key: str) -> float:
        """A positive finite number."""
        value = self.value.get(key)
        if not is_finite(value) or not value > 0:
            self.invalid(f"'{key}' must be a positive number, not {shown(value)}")
        return value

    def named_texts(self) -> dict[str, str]:
        """All fields that are texts; a prompt may refer to them by name."""
        return {key: value for key, value in self.value.items() if isinstance(value, str)}


def is_finite(value: Any) -> TypeGuard[int | float]:
    """Whether a value is a number, and one that a float can hold; a truth value is none."""
    try:
        return type(value) in (int, float) and math.isfinite(value)
    except OverflowError:  # an integer of more than 308 digits
        return False


def is_missing(value: Any) -> bool:
    """Whether a value stands for nothing: null, or NaN, which tables contain in its place."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def as_text(value: Any) -> str | None:
    """A text as it is, a finite number as its digits, else None."""
    if isinstance(value, str):
        return value
    return str(value) if is_finite(value) else None


def shown(value: Any) -> str:
    """A value for a message, at most `LONGEST` characters of it."""
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        text = f"a very large {type(value).__name__}"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def identity(record: Record, key: str = "question_id") -> dict[str, Any]:
    """The record's own id as `{"id": ...}` for the details of a sample, or `{}` without one."""
    return {"id": record.value[key]} if isinstance(record.value.get(key), (str, int)) else {}


def lettered(choices: Sequence[str]) -> str:
    """The options with their letters, one a line: `A. two`."""
    return "\n".join(f"{letter}. {text}" for letter, text in zip(ascii_uppercase[: len(choices)], choices, strict=True))


def letter_of(answer: Any, choices: Sequence[str]) -> str | None:
    """The letter of the option with an index, counted from 0; None if no option has it."""
    return ascii_uppercase[answer] if type(answer) is int and 0 <= answer < len(choices) else None


def annotated_answers(record: Record) -> list[str]:
    """The annotators' answers to a question: `answers` is a list of texts, or of objects with `answer`."""
    value = record.value.get("answers")
    if isinstance(value, list) and all(isinstance(item, Mapping) for item in value):
        value = [item.get("answer") for item in value]
    if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
        record.invalid("'answers' must be a list of texts, or of objects with 'answer'")
    if not any(text.strip() for text in value):
        record.invalid("'answers' are empty", kind="empty")
    return value


def most_frequent(answers: Iterable[str]) -> str:
    """The most frequent answer that is not empty; of equally frequent ones the first."""
    return Counter(answer for answer in answers if answer.strip()).most_common(1)[0][0]


class MissingAnnotations:
    """Ids without an entry in another file, collected over the whole file so that one error names them all.

    Args:
        path: the other file.
        what: what the file should contain for the id.
    """

    def __init__(self, path: Path, what: str) -> None:
        self.path, self.what, self.count, self.first = path, what, 0, list[str]()

    def add(self, name: object) -> None:
        """Count an id without an entry."""
        self.count += 1
        if len(self.first) < SHOWN:
            self.first.append(str(name))

    def raise_if_any(self) -> None:
        """Raise an error (or report the ids, see `skipping_invalid`) if an id has no entry."""
        if not self.count:
            return
        more = " ..." if self.count > len(self.first) else ""
        error = InvalidRecord(
            f"{self.path} has no {self.what} for {self.count} of the split's ids: {', '.join(self.first)}{more}",
            "check that both files belong together, or remove these records",
            kind="annotation",
        )
        messages = [f"{self.path} has no {self.what} for {name}" for name in self.first]
        report_or_raise(error, count=self.count, messages=messages)
