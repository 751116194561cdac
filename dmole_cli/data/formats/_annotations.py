"""Annotation files that belong to another file's questions: the answers of ten people, ScienceQA's problems."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dmole_cli.data.formats._fields import Record, given_answers, letter_of
from dmole_cli.data.formats._json import members

ANSWERS_HINT = 'the file is {"annotations": [{"question_id": 7, "answers": [{"answer": "red"}, ...]}]}'
PROBLEM_HINT = 'the file is {"1": {"question": "...", "choices": ["two", "three"], "answer": 0, "split": "train"}, ...}'


def answers_by_question(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield (question id, the answers given); of records without an id, the name of the picture stands for it.

    The records are those of every list in the file: `annotations` in VQA's, `data` in TextVQA's, the file itself in VizWiz's.
    """
    for member in members(path):
        if isinstance(member.value, dict) and "answers" in member.value:
            record = Record(path, member.place, member.value, hint=ANSWERS_HINT)
            if "question_id" not in record.value and isinstance(record.value.get("image"), str):
                yield Path(record.value["image"]).name, given_answers(record)
            else:
                yield record.text("question_id"), given_answers(record)


def problem_of(path: Path, key: str, value: Any) -> tuple[Record, list[str], str]:
    """A problem of ScienceQA's problems.json, its options, and the letter of the right one."""
    record = Record(path, f"problem {key}", value, hint=PROBLEM_HINT)
    choices = record.texts("choices")
    answer = record.value.get("answer")
    letter = letter_of(answer, choices) if isinstance(answer, int) else None
    if letter is None:
        record.refuse(f"the answer {answer!r} is not the index of one of the {len(choices)} options")
    return record, choices, letter
