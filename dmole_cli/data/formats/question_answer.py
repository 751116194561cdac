"""Questions with one answer, or with several equally correct ones (OCR-VQA, KVQA)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmole_cli.data.formats._arrow import Row
from dmole_cli.data.formats._fields import Record, identity
from dmole_cli.data.formats._image_fields import IMAGE_FIELDS
from dmole_cli.data.formats._recognition import (
    ANSWER,
    CAPTION,
    CAPTION_PROMPT,
    IMAGE,
    QUESTION,
    first_of,
    mapped,
    no_format,
)
from dmole_cli.data.formats._rows import FILE_OPTIONS, load_records
from dmole_cli.data.formats.base import Guess, Source
from dmole_cli.data.sample import Sample

if TYPE_CHECKING:
    from dmole_cli.data.card import TaskCard

HINT = 'a record is {"image": "x.jpg", "question": "...", "question_id": 7, "answer": "..."}; the answer may be a list'

# Names of a record's fields; `question` is empty if the prompt is the whole instruction.
OPTIONS: Mapping[str, Any] = {**FILE_OPTIONS, "image": "image", "question": "question", "answer": "answer"}
FILLS_PROMPT = True


def recognise(source: Source) -> Guess | None:
    """Records with an answer; without a question they are captions, or names of what an image shows."""
    question, answer = first_of(QUESTION, source.fields), first_of(ANSWER, source.fields)
    if not answer:
        return None
    image = first_of(IMAGE, source.optional_fields) or "image"
    data = mapped({"image": image, "answer": answer, "question": question}, OPTIONS)
    if question:
        return Guess(1, f"its records have '{question}' and '{answer}'", data)
    why = f"its records have '{answer}' and no question"
    if not source.optional_fields & {*IMAGE, *IMAGE_FIELDS}:
        return Guess(1, problem=no_format(source.path, f"{why} and no image"))
    prompt, metric = (CAPTION_PROMPT, "cider") if answer in CAPTION else ("", "")
    return Guess(1, why, data, prompt=prompt, metric=metric, has_question=False)


def load(card: TaskCard, split: str, *, data_root: Path | None) -> Sequence[Sample]:
    """Read a split's records (a JSON array or JSON lines); of several answers the first is the training answer.

    Raises:
        DmoleError: the file is missing or unreadable, or a record is invalid; names the file and the record.
    """
    return load_records(card, split, data_root=data_root, parse=partial(_row, keys=card.data), hint=HINT)


def _row(record: Record, *, keys: Mapping[str, str]) -> Row:
    answers = record.answers(keys["answer"])
    return Row(
        record.place,
        question=record.text(keys["question"]) if keys["question"] else "",
        answer=answers[0],
        references=tuple(answers),
        images=record.images(keys["image"]),
        details=identity(record),
        named=record.named_texts(),
    )
