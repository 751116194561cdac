"""Conversations: a JSON array or JSON lines of records, each with images (one, several or none) and turns.

`_conversations.py` lists the spellings that are read. `<image>` in a question is the place of the next image; without
markers, the images precede the text.

A record with several questions becomes one sample per answer, with the earlier turns in its question. So each answer is
trained, generated and scored in the context that training on the whole conversation would give it, a metric compares one
answer at a time, and no answer is trained twice. The cost: the images are encoded once per answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmole_cli.data.formats._arrow import Row
from dmole_cli.data.formats._conversations import LISTS, PAIRS, conversation
from dmole_cli.data.formats._fields import Record, identity
from dmole_cli.data.formats._json import records
from dmole_cli.data.formats._rows import FILE_OPTIONS, load_rows
from dmole_cli.data.formats.base import Guess, Source
from dmole_cli.data.invalid_records import valid_records
from dmole_cli.data.sample import Sample

if TYPE_CHECKING:
    from dmole_cli.data.card import TaskCard

# Fields that metrics need; other fields of a record are ignored.
DETAIL_KEYS = ("options", "box", "width", "height")
HINT = 'a record is {"image": ..., "conversations": [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}]}'

OPTIONS: Mapping[str, Any] = FILE_OPTIONS
FILLS_PROMPT = True


def recognise(source: Source) -> Guess | None:
    """Records with turns; or with `query` and `response` or the like, and images, earlier turns or a system text beside them."""
    turns = next((name for name in LISTS if name in source.fields), None)
    if turns is not None:
        return Guess(9, f"its records have '{turns}'", prompt="{question}")
    pair = next((pair for pair in PAIRS if source.fields.issuperset(pair)), None)
    if pair is None or not source.optional_fields & {"history", "system", "input", "images", "videos", "audios"}:
        return None
    return Guess(3, f"its records have '{pair[0]}' and '{pair[1]}'", prompt="{question}")


def load(card: TaskCard, split: str, *, data_root: Path | None) -> Sequence[Sample]:
    """Read a split's records.

    Images are named by `image` or another usual field, or by parts of the turns. `references` (a list of texts) defaults to
    the answer. The prompt may name any text of the record.

    Raises:
        DmoleError: the file is missing or unreadable, or a record is invalid; names the file and the record.
    """
    return load_rows(card, split, data_root=data_root, read=_read)


def _read(path: Path, other_files: Mapping[str, Path]) -> Iterator[Row]:
    return valid_records(records(path), partial(_rows, path))


def _rows(path: Path, place: str, value: Any) -> Iterator[Row]:
    record = Record(path, place, value if isinstance(value, dict) else {}, hint=HINT)
    samples = conversation(record).samples()
    single = len(samples) == 1
    for number, (question, answer, images) in enumerate(samples):
        own = {key: value if single else f"{value}#{number}" for key, value in identity(record, "id").items()}
        yield Row(
            place=place,
            question=question,
            answer=answer,
            references=_references(record, answer, single=single),
            images=images,
            details={key: record.value[key] for key in DETAIL_KEYS if key in record.value} | own,
            named=record.named_texts(),
        )


def _references(record: Record, answer: str, *, single: bool) -> tuple[str, ...]:
    if "references" not in record.value:
        return (answer,)
    references = record.value["references"]
    if not single:
        record.invalid("'references' is only allowed in a record of one question")
    if not isinstance(references, list) or not references or not all(isinstance(text, str) for text in references):
        record.invalid("'references' must be a list of texts", "give at least one, or omit the key")
    return tuple(references)
