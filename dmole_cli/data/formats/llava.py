"""LLaVA/ShareGPT conversation records: a JSON array or JSON lines, each with images (one, several or none) and turns.

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
from dmole_cli.data.formats._fields import Record, identity
from dmole_cli.data.formats._json import records
from dmole_cli.data.formats._rows import FILE_OPTIONS, load_rows
from dmole_cli.data.formats.base import Guess, Source
from dmole_cli.data.invalid_records import valid_records
from dmole_cli.data.sample import Sample

if TYPE_CHECKING:
    from dmole_cli.data.card import TaskCard

# Removed from the text: the backbone's template puts the images in front of the text, with or without a marker.
IMAGE_MARKER = "<image>"
ROLES = {"human": "question", "user": "question", "gpt": "answer", "assistant": "answer", "system": "system"}
# Fields that metrics need; other fields of a record are ignored.
DETAIL_KEYS = ("options", "box", "width", "height")
HINT = 'a record is {"image": ..., "conversations": [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}]}'

OPTIONS: Mapping[str, Any] = FILE_OPTIONS
FILLS_PROMPT = True


def recognise(source: Source) -> Guess | None:
    """Records with `conversations`."""
    if "conversations" not in source.fields:
        return None
    return Guess(9, "its records have 'conversations'", prompt="{question}")


def load(card: TaskCard, split: str, *, data_root: Path | None) -> Sequence[Sample]:
    """Read a split's records.

    `image` is a path, a list of paths, or absent; `references` (a list of texts) defaults to the answer. The prompt may
    name any text of the record.

    Raises:
        DmoleError: the file is missing or unreadable, or a record is invalid; names the file and the record.
    """
    return load_rows(card, split, data_root=data_root, read=_read)


def _read(path: Path, other_files: Mapping[str, Path]) -> Iterator[Row]:
    return valid_records(records(path), partial(_rows, path))


def _rows(path: Path, place: str, value: Any) -> Iterator[Row]:
    record = Record(path, place, value if isinstance(value, dict) else {}, hint=HINT)
    turns = _turns(record)
    images = record.images()
    for number, (question, answer) in enumerate(turns):
        own = {key: f"{value}#{number}" if len(turns) > 1 else value for key, value in identity(record, "id").items()}
        yield Row(
            place=place,
            question=question,
            answer=answer,
            references=_references(record, answer, single=len(turns) == 1),
            images=images,
            details={key: record.value[key] for key in DETAIL_KEYS if key in record.value} | own,
            named=record.named_texts(),
        )


def _turns(record: Record) -> list[tuple[str, str]]:
    """(question, answer) of each answer; a question starts with all earlier turns and has no image markers."""
    turns = record.value.get("conversations")
    if not isinstance(turns, list) or not turns:
        record.invalid("the record has no conversations")
    earlier, found, system = list[str](), list[tuple[str, str]](), ""
    texts = [_turn(record, turn) for turn in turns]
    if texts[0][0] == "system":
        system = texts.pop(0)[1]
    for index, (kind, text) in enumerate(texts):
        if kind != ("question", "answer")[index % 2]:
            record.invalid("questions (human) and answers (gpt) must alternate, a question first")
        if not text:
            record.invalid(
                f"the {kind} is empty",
                "" if kind == "question" else "add an answer or remove the record",
                kind="record" if kind == "question" else "empty",
            )
    if len(texts) % 2 or not texts:
        record.invalid("the answer is empty", "add an answer or remove the record", kind="empty")
    for (_, question), (_, answer) in zip(texts[::2], texts[1::2], strict=True):
        whole = "\n".join([*earlier, f"User: {question}" if earlier else question])
        found.append((f"{system}\n{whole}" if system else whole, answer))
        earlier += [f"User: {question}", f"Assistant: {answer}"]
    return found


def _turn(record: Record, turn: Any) -> tuple[str, str]:
    """The kind of a turn (see `ROLES`) and its text."""
    role = turn.get("from", turn.get("role")) if isinstance(turn, dict) else None
    text = turn.get("value", turn.get("content")) if isinstance(turn, dict) else None
    if role not in ROLES or not isinstance(text, str):
        record.invalid("a turn must be a text of 'human' or of 'gpt'")
    kind = ROLES[role]
    return kind, (text.replace(IMAGE_MARKER, "") if kind == "question" else text).strip()


def _references(record: Record, answer: str, *, single: bool) -> tuple[str, ...]:
    if "references" not in record.value:
        return (answer,)
    references = record.value["references"]
    if not single:
        record.invalid("'references' is only allowed in a record of one question")
    if not isinstance(references, list) or not references or not all(isinstance(text, str) for text in references):
        record.invalid("'references' must be a list of texts", "give at least one, or omit the key")
    return tuple(references)
