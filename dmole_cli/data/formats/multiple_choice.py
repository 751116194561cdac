"""Multiple choice: records with a question, its options and which of them is right; answered with a letter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmole_cli.data.formats._fields import Record, identity, letter_of, lettered, usable
from dmole_cli.data.formats._json import records
from dmole_cli.data.formats._rows import FILE_OPTIONS, Row, load_rows
from dmole_cli.data.sample import Sample

if TYPE_CHECKING:
    from dmole_cli.data.card import TaskCard

MOST = 26
HINT = (
    'a record is {"image": "x.png", "question": "...", "choices": ["2", "3"], "answer": 1}, the answer counted from 0'
)

# The keys of a record, where they have other names.
OPTIONS: Mapping[str, Any] = {
    **FILE_OPTIONS,
    "image": "image",
    "question": "question",
    "choices": "choices",
    "answer": "answer",
}
FILLS_PROMPT = True


def load(card: TaskCard, split: str, *, data_root: Path | None) -> Sequence[Sample]:
    """Read one split's records (a JSON array or JSON lines).

    The prompt may name `{options}`, the options a line each with their letters, and any text of the record. The answer is
    an index from 0, a letter, or the text of an option.

    Raises:
        DmoleError: the file is missing or unreadable, or a record is not usable; names the file and the record.
    """
    return load_rows(card, split, data_root=data_root, read=partial(_read, keys=card.data))


def _read(path: Path, beside: Mapping[str, Path], *, keys: Mapping[str, str]) -> Iterator[Row]:
    return usable(records(path), lambda place, value: [_row(Record(path, place, value, hint=HINT), keys)])


def _row(record: Record, keys: Mapping[str, str]) -> Row:
    choices = record.texts(keys["choices"])
    letter = letter_of(record.value.get(keys["answer"]), choices)
    if not 2 <= len(choices) <= MOST:
        record.refuse(f"a question needs 2 to {MOST} options, not {len(choices)}")
    if letter is None:
        record.refuse(f"the answer {record.value.get(keys['answer'])!r} is none of the {len(choices)} options")
    return Row(
        record.place,
        question=record.text(keys["question"]),
        answer=letter,
        references=(letter,),
        images=record.images(keys["image"]),
        details={"options": choices, "answer": letter, **identity(record)},
        named=record.named() | {"options": lettered(choices)},
    )
