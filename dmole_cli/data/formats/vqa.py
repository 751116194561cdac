"""Questions that ten people answered: the questions in one file, the answers in another, joined by `question_id`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmole_cli.data.formats._annotations import answers_by_question
from dmole_cli.data.formats._fields import Record, Unannotated, given_answers, identity, most_given, usable
from dmole_cli.data.formats._json import records
from dmole_cli.data.formats._lookup import Lookup, looked_up
from dmole_cli.data.formats._rows import FILE_OPTIONS, Row, load_rows
from dmole_cli.data.sample import Sample

if TYPE_CHECKING:
    from dmole_cli.data.card import TaskCard

HINT = 'a question is {"image": "x.jpg", "question": "...", "question_id": 7}'

# The answers of each split; empty where the questions' records hold them as `answers`.
OPTIONS: Mapping[str, Any] = {
    **FILE_OPTIONS,
    "train_annotations": "",
    "validation_annotations": "",
    "test_annotations": "",
}
FILLS_PROMPT = True


def load(card: TaskCard, split: str, *, data_root: Path | None) -> Sequence[Sample]:
    """Read one split's questions (a JSON array or JSON lines); all answers are references, the most given one is trained.

    Raises:
        DmoleError: a file is missing or unreadable, a record is not usable, or a question has no answers.
    """
    beside = ["train_annotations" if card.holds_out(split) else f"{split}_annotations"]
    return load_rows(card, split, data_root=data_root, read=_read, beside=beside)


def _read(path: Path, beside: Mapping[str, Path]) -> Iterator[Row]:
    if not beside:
        yield from _rows(path, None, path)
        return
    [annotations] = beside.values()
    with looked_up(answers_by_question(annotations)) as answers:
        yield from _rows(path, answers, annotations)


def _rows(path: Path, answers: Lookup | None, annotations: Path) -> Iterator[Row]:
    missing = Unannotated(annotations, "answers")

    def row(place: str, value: Any) -> Iterator[Row]:
        record = Record(path, place, value, hint=HINT)
        given = given_answers(record) if answers is None else next(iter(answers.all(record.text("question_id"))), None)
        if given is None:
            missing.add(record.value["question_id"])
            return
        yield Row(
            place,
            question=record.text("question"),
            answer=most_given(given),
            references=tuple(given),
            images=record.images(),
            details=identity(record),
            named=record.named(),
        )

    yield from usable(records(path), row)
    missing.refuse()
