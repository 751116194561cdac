"""LLaVA/ShareGPT conversation records: a JSON array or JSON lines, a picture (or several, or none) and its conversation.

A record with several questions becomes one sample for each answer, with the turns before it in its question. An answer is
trained, generated and scored with what came before it in sight, as in training on the whole conversation; a metric
compares one answer; and no answer is learned twice. What it costs is that the pictures are encoded once for each answer.
"""

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

# The backbone's template puts the pictures in front of the text, wherever the marker stands and where there is none.
IMAGE_MARKER = "<image>"
ROLES = {"human": "question", "user": "question", "gpt": "answer", "assistant": "answer", "system": "system"}
# A record keeps its own keys for people; these the metrics ask for.
DETAIL_KEYS = ("options", "box", "width", "height")
HINT = 'a record is {"image": ..., "conversations": [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}]}'

OPTIONS: Mapping[str, Any] = FILE_OPTIONS
FILLS_PROMPT = True


def load(card: TaskCard, split: str, *, data_root: Path | None) -> Sequence[Sample]:
    """Read one split's records; a split without a path has no rows.

    `image` is a path, a list of paths, or absent; `references` (a list of texts) defaults to the answer. The texts of a
    record may be named in the prompt.

    Raises:
        DmoleError: the file is missing or unreadable, or a record is not usable; names the file and the record.
    """
    return load_rows(card, split, data_root=data_root, read=_read)


def _read(path: Path, beside: Mapping[str, Path]) -> Iterator[Row]:
    return usable(records(path), partial(_rows, path))


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
            references=_references(record, answer, alone=len(turns) == 1),
            images=images,
            details={key: record.value[key] for key in DETAIL_KEYS if key in record.value} | own,
            named=record.named(),
        )


def _turns(record: Record) -> list[tuple[str, str]]:
    """The answered questions, each behind the turns before it, without the pictures' markers."""
    turns = record.value.get("conversations")
    if not isinstance(turns, list) or not turns:
        record.refuse("the record has no conversations")
    said, found, system = list[str](), list[tuple[str, str]](), ""
    texts = [_turn(record, turn) for turn in turns]
    if texts[0][0] == "system":
        system = texts.pop(0)[1]
    for index, (kind, text) in enumerate(texts):
        if kind != ("question", "answer")[index % 2]:
            record.refuse("questions (human) and answers (gpt) must alternate, a question first")
        if not text:
            record.refuse(
                f"the {kind} is empty",
                "" if kind == "question" else "give the record an answer or remove it",
                kind="record" if kind == "question" else "empty",
            )
    if len(texts) % 2 or not texts:
        record.refuse("the answer is empty", "give the record an answer or remove it", kind="empty")
    for (_, question), (_, answer) in zip(texts[::2], texts[1::2], strict=True):
        whole = "\n".join([*said, f"User: {question}" if said else question])
        found.append((f"{system}\n{whole}" if system else whole, answer))
        said += [f"User: {question}", f"Assistant: {answer}"]
    return found


def _turn(record: Record, turn: Any) -> tuple[str, str]:
    role = turn.get("from", turn.get("role")) if isinstance(turn, dict) else None
    text = turn.get("value", turn.get("content")) if isinstance(turn, dict) else None
    if role not in ROLES or not isinstance(text, str):
        record.refuse("a turn must be a text of 'human' or of 'gpt'")
    kind = ROLES[role]
    return kind, (text.replace(IMAGE_MARKER, "") if kind == "question" else text).strip()


def _references(record: Record, answer: str, *, alone: bool) -> tuple[str, ...]:
    if "references" not in record.value:
        return (answer,)
    references = record.value["references"]
    if not alone:
        record.refuse("'references' belongs to a record of one question")
    if not isinstance(references, list) or not references or not all(isinstance(text, str) for text in references):
        record.refuse("'references' must be a list of texts", "give at least one, or leave the key out")
    return tuple(references)
