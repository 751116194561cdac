"""LLaVA/ShareGPT conversation records: the user's own JSON array or JSON lines, a picture and a question each."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmole_cli.errors import DmoleError
from dmole_cli.formats._pictures import open_picture
from dmole_cli.sample import Sample

if TYPE_CHECKING:
    from dmole_cli.tasks.card import TaskCard

IMAGE_MARKER = "<image>"
ASKING, ANSWERING = frozenset({"human", "user"}), frozenset({"gpt", "assistant"})
# A record keeps its own keys for people; these the metrics ask for.
DETAIL_KEYS = ("options", "box", "width", "height")

# Paths of the annotation files and of the folder that pictures' names start at; relative to --data-root or the card.
OPTIONS: Mapping[str, Any] = {"train": "", "validation": "", "test": "", "images": ""}


def load(card: TaskCard, split: str, *, data_root: Path | None) -> list[Sample]:
    """Read one split's records; a split without a path has no rows.

    A record is one question and one answer; more turns are refused, because a row is scored by one answer. `image` is
    a path, a list of paths, or absent; `references` (a list of texts) defaults to the answer.

    Raises:
        DmoleError: the file is missing or unreadable, or a record is not usable; names the file and the record.
    """
    if not card.data[split]:
        return []
    root = data_root or card.path.parent
    path = root / card.data[split]
    size = getattr(card.sizes, split)
    rows: list[Sample] = []
    for place, record in _records(path):
        if size and len(rows) == size:
            break
        rows.append(
            _sample(record, sample_id=f"{split}-{len(rows):05d}", place=place, images=root / card.data["images"])
        )
    return rows


def _records(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield (where it stands, record) from a JSON array or from JSON lines, told apart by the first character."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise DmoleError(f"missing annotation file {path}", "check [data] of the task card or --data-root") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DmoleError(f"cannot read the annotation file {path}: {error}", "it must be JSON in UTF-8") from error
    if text.lstrip().startswith("["):
        try:
            records = json.loads(text)
        except json.JSONDecodeError as error:
            raise DmoleError(f"{path}, line {error.lineno}: not JSON ({error.msg})", "mend the array") from error
        yield from ((f"{path}, record {number}", record) for number, record in enumerate(records, start=1))
        return
    # Not splitlines(): it would also split at U+2028, which JSON allows inside a text.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DmoleError(f"{path}, line {number}: not JSON ({error.msg})", "mend or remove the line") from error
        yield f"{path}, line {number}", record


def _sample(record: Any, *, sample_id: str, place: str, images: Path) -> Sample:
    question, answer = _turns(record, place=place)
    references = record.get("references", [answer])
    if not isinstance(references, list) or not references or not all(isinstance(text, str) for text in references):
        raise DmoleError(f"{place}: 'references' must be a list of texts", "give at least one, or leave the key out")
    names = _image_names(record, place=place)
    return Sample(
        sample_id=sample_id,
        question=question,
        answer=answer,
        references=tuple(references),
        images=tuple(partial(open_picture, images / name, row=place) for name in names),
        details={key: record[key] for key in DETAIL_KEYS if key in record},
        sources=tuple(f"file:{name}" for name in names),
        files=tuple(images / name for name in names),
    )


def _turns(record: Any, *, place: str) -> tuple[str, str]:
    """Give the question without the picture's marker, and the answer."""
    hint = (
        'a record is {"image": ..., "conversations": [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}]}'
    )
    turns = record.get("conversations") if isinstance(record, dict) else None
    if not isinstance(turns, list) or not turns:
        raise DmoleError(f"{place}: the record has no conversations", hint)
    texts: dict[str, str] = {}
    for turn in turns:
        role = turn.get("from", turn.get("role")) if isinstance(turn, dict) else None
        text = turn.get("value", turn.get("content")) if isinstance(turn, dict) else None
        kind = "question" if role in ASKING else "answer" if role in ANSWERING else ""
        if not kind or not isinstance(text, str) or kind in texts:
            raise DmoleError(f"{place}: the conversation must be one question (human) and one answer (gpt)", hint)
        texts[kind] = text
    question = texts.get("question", "").replace(IMAGE_MARKER, "").strip()
    answer = texts.get("answer", "").strip()
    if not question:
        raise DmoleError(f"{place}: the question is empty", hint)
    if not answer:
        raise DmoleError(f"{place}: the answer is empty", "give the record an answer or remove it")
    return question, answer


def _image_names(record: Mapping[str, Any], *, place: str) -> list[str]:
    value = record.get("image") or []
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise DmoleError(
            f"{place}: 'image' must be a path or a list of paths", "leave it out for a row without picture"
        )
    return names
