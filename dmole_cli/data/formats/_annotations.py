"""Annotation files that complete another file's questions: annotators' answers, captions, and ScienceQA's problems."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from dmole_cli.data.formats._fields import Record, annotated_answers, letter_of
from dmole_cli.data.formats._json import members
from dmole_cli.data.formats._lookup import indexed
from dmole_cli.data.invalid_records import valid_records

ANSWERS_HINT = 'the file is {"annotations": [{"question_id": 7, "answers": [{"answer": "red"}, ...]}]}'
CAPTIONS_HINT = (
    'the file is {"images": [{"id": 1, "file_name": "x.jpg"}], "annotations": [{"image_id": 1, "caption": "..."}]}'
)
PROBLEM_HINT = 'the file is {"1": {"question": "...", "choices": ["two", "three"], "answer": 0, "split": "train"}, ...}'


def answers_by_question(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield (question id, annotators' answers); for records without `question_id` the image's file name is the id.

    The records of all lists in the file are read: `annotations` in VQA, `data` in TextVQA, the file itself in VizWiz. In a
    file of COCO captions the id is the image's file name, and its captions are the answers.
    """
    if _has_captions(path):
        return _captions_by_file_name(path)
    return valid_records(((member.place, member.value) for member in members(path)), partial(_answers, path))


def captions(path: Path) -> Iterator[tuple[int | str, str]]:
    """Yield (image id, caption) of a file of COCO captions."""

    def pair(place: str, value: Any) -> Iterator[tuple[int | str, str]]:
        annotation = Record(path, place, value, hint=CAPTIONS_HINT)
        yield image_id(annotation, "image_id"), annotation.text("caption")

    return valid_records(members_of(path, "annotations"), pair)


def image_id(record: Record, key: str) -> int | str:
    """An image's id in a file of COCO captions: a number or a text."""
    value = record.value.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, str)) or value == "":
        record.invalid(f"'{key}' must be a number or a text, not {value!r}")
    return value


def members_of(path: Path, group: str) -> Iterator[tuple[str, Any]]:
    """Yield (place, value) of the records in one list of a JSON object."""
    for member in members(path):
        if member.group == group:
            yield member.place, member.value


def _has_captions(path: Path) -> bool:
    """Whether the first record that has answers or a caption has a caption."""
    for member in members(path):
        if isinstance(member.value, dict) and ("answers" in member.value or "caption" in member.value):
            return "caption" in member.value
    return False


def _captions_by_file_name(path: Path) -> Iterator[tuple[str, list[str]]]:
    with indexed(captions(path)) as found:

        def pair(place: str, value: Any) -> Iterator[tuple[str, list[str]]]:
            image = Record(path, place, value, hint=CAPTIONS_HINT)
            if texts := found.all(image_id(image, "id")):  # an image without captions is counted as such
                yield Path(image.text("file_name")).name, texts

        yield from valid_records(members_of(path, "images"), pair)


def _answers(path: Path, place: str, value: Any) -> Iterator[tuple[str, list[str]]]:
    if not isinstance(value, dict) or "answers" not in value:
        return  # the file may describe itself; a question without answers is counted as such
    record = Record(path, place, value, hint=ANSWERS_HINT)
    if "question_id" not in value and isinstance(value.get("image"), str):
        yield Path(value["image"]).name, annotated_answers(record)
    else:
        yield record.text("question_id"), annotated_answers(record)


def problem_of(path: Path, key: str, value: Any) -> tuple[Record, list[str], str]:
    """Parse a problem of ScienceQA's problems.json into its record, its options and the letter of the correct one."""
    record = Record(path, f"problem {key}", value, hint=PROBLEM_HINT)
    choices = record.options("choices")
    answer = record.value.get("answer")
    letter = letter_of(answer, choices)
    if letter is None:
        record.invalid(f"the answer {answer!r} is not the index of one of the {len(choices)} options")
    return record, choices, letter
