"""Questions with one answer or several that count alike, as OCR-VQA and KVQA have them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmole_cli.data.formats._fields import Record, identity, usable
from dmole_cli.data.formats._json import records
from dmole_cli.data.formats._rows import FILE_OPTIONS, Row, load_rows
from dmole_cli.data.sample import Sample

if TYPE_CHECKING:
    from dmole_cli.data.card import TaskCard

HINT = 'a record is {"image": "x.jpg", "question": "...", "question_id": 7, "answer": "..."}; the answer may be a list'

# The keys of a record, where they have other names; `question` is empty where the prompt says it all.
OPTIONS: Mapping[str, Any] = {**FILE_OPTIONS, "image": "image", "question": "question", "answer": "answer"}
FILLS_PROMPT = True


def load(card: TaskCard, split: str, *, data_root: Path | None) -> Sequence[Sample]:
    """Read one split's records (a JSON array or JSON lines); of several answers the first is trained.

    Raises:
        DmoleError: the file is missing or unreadable, or a record is not usable; names the file and the record.
    """
    return load_rows(card, split, data_root=data_root, read=partial(_read, keys=card.data))


def _read(path: Path, beside: Mapping[str, Path], *, keys: Mapping[str, str]) -> Iterator[Row]:
    return usable(records(path), lambda place, value: [_row(Record(path, place, value, hint=HINT), keys)])


def _row(record: Record, keys: Mapping[str, str]) -> Row:
    several = isinstance(record.value.get(keys["answer"]), list)
    answers = record.texts(keys["answer"]) if several else [record.text(keys["answer"])]
    return Row(
        record.place,
        question=record.text(keys["question"]) if keys["question"] else "",
        answer=answers[0],
        references=tuple(answers),
        images=record.images(keys["image"]),
        details=identity(record),
        named=record.named(),
    )
