"""Multiple choice: records with a question, its options and the correct one; the answer is a letter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmole_cli.data.formats._arrow import Row
from dmole_cli.data.formats._choices import UNDECLARED, OptionReader, check_first_index, implied_first_index, number_of
from dmole_cli.data.formats._fields import Record, identity, lettered
from dmole_cli.data.formats._json import records
from dmole_cli.data.formats._recognition import ANSWER, CHOICES, IMAGE, LETTER_PROMPT, QUESTION, first_of, mapped
from dmole_cli.data.formats._rows import FILE_OPTIONS, load_records
from dmole_cli.data.formats.base import Guess, Source
from dmole_cli.data.sample import Sample

if TYPE_CHECKING:
    from dmole_cli.data.card import TaskCard

SCANNED = 100_000  # records from which `first_index` is guessed
HINT = (
    'a record is {"image": "x.png", "question": "...", "choices": ["2", "3"], "answer": 1}, the answer counted from 0'
)

# `first_index`: what a number as an answer counts from, see `_choices.OptionReader`. The others are names of a record's fields.
OPTIONS: Mapping[str, Any] = {
    **FILE_OPTIONS,
    "first_index": UNDECLARED,
    "image": "image",
    "question": "question",
    "choices": "choices",
    "answer": "answer",
}
FILLS_PROMPT = True


def recognise(source: Source) -> Guess | None:
    """Records with a question, a list of options and an answer."""
    found = [first_of(names, source.fields) for names in (QUESTION, CHOICES, ANSWER)]
    if not all(found):
        return None
    question, choices, answer = found
    image = first_of(IMAGE, source.optional_fields) or "image"
    data: dict[str, Any] = mapped({"image": image, "question": question, "choices": choices, "answer": answer}, OPTIONS)
    first = implied_first_index(
        (value.get(answer), number_of(value.get(choices)))
        for _, value in islice(records(source.path), SCANNED)
        if isinstance(value, dict)
    )
    data |= {"first_index": first} if first != UNDECLARED else {}
    why = f"its records have '{question}', '{choices}' and '{answer}'"
    return Guess(6, why, data, prompt=LETTER_PROMPT, metric="multiple_choice")


def load(card: TaskCard, split: str, *, data_root: Path | None) -> Sequence[Sample]:
    """Read a split's records (a JSON array or JSON lines).

    The prompt may name `{options}` (the options with their letters, one a line) and any text of the record. `_choices`
    describes the spellings of options and answers.

    Raises:
        DmoleError: the file is missing or unreadable, or a record is invalid; names the file and the record.
    """
    check_first_index(card)
    reader = OptionReader(card.data["first_index"])
    parse = partial(_row, keys=card.data, reader=reader)
    return load_records(card, split, data_root=data_root, parse=parse, hint=HINT)


def _row(record: Record, *, keys: Mapping[str, Any], reader: OptionReader) -> Row:
    choices, letter = reader.read(record, keys["choices"], keys["answer"])
    return Row(
        record.place,
        question=record.text(keys["question"]),
        answer=letter,
        references=(letter,),
        images=record.images(keys["image"]),
        details={"options": choices, "answer": letter, **identity(record)},
        named=record.named_texts() | {"options": lettered(choices)},
    )
