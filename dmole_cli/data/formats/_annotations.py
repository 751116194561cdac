"""Annotation files that complete another file's questions: annotators' answers, and ScienceQA's problems."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from dmole_cli.data.formats._fields import Record, annotated_answers, letter_of
from dmole_cli.data.formats._json import members
from dmole_cli.data.invalid_records import valid_records

ANSWERS_HINT = 'the file is {"annotations": [{"question_id": 7, "answers": [{"answer": "red"}, ...]}]}'
PROBLEM_HINT = 'the file is {"1": {"question": "...", "choices": ["two", "three"], "answer": 0, "split": "train"}, ...}'


def answers_by_question(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield (question id, annotators' answers); for records without `question_id` the image's file name is the id.

    The records of all lists in the file are read: `annotations` in VQA, `data` in TextVQA, the file itself in VizWiz.
    """
    return valid_records(((member.place, member.value) for member in members(path)), partial(_answers, path))


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
