"""Grounding: records with a description of something in the picture, and the box around it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmole_cli.data.formats._boxes import UNITS, framed, written
from dmole_cli.data.formats._fields import Record, identity, usable
from dmole_cli.data.formats._json import records
from dmole_cli.data.formats._rows import FILE_OPTIONS, Row, load_rows
from dmole_cli.data.sample import Sample
from dmole_cli.errors import DmoleError

if TYPE_CHECKING:
    from dmole_cli.data.card import TaskCard

HINT = 'a record is {"image": "a.jpg", "sent": "the man ...", "bbox": [x1, y1, x2, y2], "width": 640, "height": 480}'

# `boxes`: the unit of a record's box, `pixels`, `fractions` of the image, or `padded`, fractions of the image padded to a
# square. The others are the keys of a record, where they have other names.
OPTIONS: Mapping[str, Any] = {
    **FILE_OPTIONS,
    "boxes": "pixels",
    "image": "image",
    "question": "sent",
    "box": "bbox",
    "width": "width",
    "height": "height",
}
FILLS_PROMPT = True


def load(card: TaskCard, split: str, *, data_root: Path | None) -> Sequence[Sample]:
    """Read one split's records (a JSON array or JSON lines); the prompt may name any text of the record, `{knowledge}` say.

    The training answer is the box in thousandths, `[[x1, y1, x2, y2]]`, or in fractions where the record's are.

    Raises:
        DmoleError: the file is missing or unreadable, or a record is not usable; names the file and the record.
    """
    if card.data["boxes"] not in UNITS:
        raise DmoleError(f"{card.path}: data.boxes is '{card.data['boxes']}'", f"choose one of: {', '.join(UNITS)}")
    return load_rows(card, split, data_root=data_root, read=partial(_read, keys=card.data))


def _read(path: Path, beside: Mapping[str, Path], *, keys: Mapping[str, str]) -> Iterator[Row]:
    return usable(records(path), lambda place, value: [_row(Record(path, place, value, hint=HINT), keys)])


def _row(record: Record, keys: Mapping[str, str]) -> Row:
    unit = keys["boxes"]
    width, height = record.length(keys["width"]), record.length(keys["height"])
    details = framed(record.numbers(keys["box"], 4), unit=unit, width=width, height=height)
    left, top, right, bottom = details["box"]
    if not (left < right and top < bottom):
        record.refuse(f"the box {details['box']} is empty: left, top, right, bottom are expected")
    answer = written(details, unit=unit)
    return Row(
        record.place,
        question=record.text(keys["question"]),
        answer=answer,
        references=(answer,),
        images=record.images(keys["image"]),
        details=details | identity(record),
        named=record.named(),
    )
