"""Questions answered by ten annotators: questions in one file, answers in another, joined by `question_id`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmole_cli.data.formats._annotations import answers_by_question
from dmole_cli.data.formats._arrow import Row
from dmole_cli.data.formats._fields import MissingAnnotations, Record, annotated_answers, identity, most_frequent
from dmole_cli.data.formats._json import records
from dmole_cli.data.formats._lookup import Lookup, indexed
from dmole_cli.data.formats._recognition import IMAGE, SHORT_PROMPT, first_of
from dmole_cli.data.formats._rows import FILE_OPTIONS, load_rows
from dmole_cli.data.formats.base import Guess, Source
from dmole_cli.data.invalid_records import valid_records
from dmole_cli.data.sample import Sample

if TYPE_CHECKING:
    from dmole_cli.data.card import TaskCard

HINT = 'a question is {"image": "x.jpg", "question": "...", "question_id": 7}'

# The file of answers of each split; empty if the question's record contains them as `answers`.
OPTIONS: Mapping[str, Any] = {
    **FILE_OPTIONS,
    "train_annotations": "",
    "validation_annotations": "",
    "test_annotations": "",
}
FILLS_PROMPT = True


def recognise(source: Source) -> Guess | None:
    """Records with `question` and several `answers`."""
    image = first_of(IMAGE, source.optional_fields) or "image"
    if not {"question", "answers"} <= source.fields or image != "image":
        return None
    return Guess(5, "its records have 'question' and several 'answers'", prompt=SHORT_PROMPT, metric="vqa_accuracy")


def load(card: TaskCard, split: str, *, data_root: Path | None) -> Sequence[Sample]:
    """Read a split's questions (a JSON array or JSON lines).

    All answers are references; the most frequent one is the training answer.

    Raises:
        DmoleError: a file is missing or unreadable, a record is invalid, or a question has no answers.
    """
    annotations = "train_annotations" if card.holds_out(split) else f"{split}_annotations"
    return load_rows(card, split, data_root=data_root, read=_read, other_files=[annotations])


def _read(path: Path, other_files: Mapping[str, Path]) -> Iterator[Row]:
    if not other_files:
        yield from _rows(path, None, path)
        return
    [annotations] = other_files.values()
    with indexed(answers_by_question(annotations)) as answers:
        yield from _rows(path, answers, annotations)


def _rows(path: Path, answers: Lookup | None, annotations: Path) -> Iterator[Row]:
    missing = MissingAnnotations(annotations, "answers")

    def row(place: str, value: Any) -> Iterator[Row]:
        record = Record(path, place, value, hint=HINT)
        given = annotated_answers(record) if answers is None else _first(answers.all(record.text("question_id")))
        if given is None:
            missing.add(record.value["question_id"])
            return
        yield Row(
            place,
            question=record.text("question"),
            answer=most_frequent(given),
            references=tuple(given),
            images=record.images(),
            details=identity(record),
            named=record.named_texts(),
        )

    yield from valid_records(records(path), row)
    missing.raise_if_any()


def _first(found: list[list[str]]) -> list[str] | None:
    return found[0] if found else None
