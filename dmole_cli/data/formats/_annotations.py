"""Annotation files that complete another file's questions: annotators' answers, and ScienceQA's problems."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dmole_cli.data.formats._fields import Record, annotated_answers, letter_of
from dmole_cli.data.formats._json import members

ANSWERS_HINT = 'the file is {"annotations": [{"question_id": 7, "answers": [{"answer": "red"}, ...]}]}'
PROBLEM_HINT = 'the file is {"1": {"question": "...", "choices": ["two", "three"], "answer": 0, "split": "train"}, ...}'


def answers_by_question(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield (question id, annotators' answers); for records without `question_id` the image's file name is the id.

    The records of all lists in the file are read: `annotations` in VQA, `data` in TextVQA, the file itself in VizWiz.
    """
    for member in members(path):
        if isinstance(member.value, dict) and "answers" in member.value:
            record = Record(path, member.place, member.value, hint=ANSWERS_HINT)
            if "question_id" not in record.value and isinstance(record.value.get("image"), str):
                yield Path(record.value["image"]).name, annotated_answers(record)
            else:
                yield record.text("question_id"), annotated_answers(record)


def problem_of(path: Path, key: str, value: Any) -> tuple[Record, list[str], str]:
    """Parse a problem of ScienceQA's problems.json into its record, its options and the letter of the correct one."""
    record = Record(path, f"problem {key}", value, hint=PROBLEM_HINT)
    choices = record.options("choices")
    answer = record.value.get("answer")
    letter = letter_of(answer, choices) if isinstance(answer, int) else None
    if letter is None:
        record.invalid(f"the answer {answer!r} is not the index of one of the {len(choices)} options")
    return record, choices, letter
