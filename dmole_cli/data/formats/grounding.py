"""Grounding: records with a description of an object in the image, and the box around the object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmole_cli.data.formats._arrow import Row
from dmole_cli.data.formats._boxes import UNITS, box_answer, framed
from dmole_cli.data.formats._fields import Record, identity
from dmole_cli.data.formats._recognition import BOX, BOX_PROMPT, EXPRESSION, IMAGE, first_of, mapped, no_format
from dmole_cli.data.formats._rows import FILE_OPTIONS, load_records
from dmole_cli.data.formats.base import Guess, Source
from dmole_cli.data.sample import Sample
from dmole_cli.errors import DmoleError

if TYPE_CHECKING:
    from dmole_cli.data.card import TaskCard

HINT = 'a record is {"image": "a.jpg", "sent": "the man ...", "bbox": [x1, y1, x2, y2], "width": 640, "height": 480}'

# `boxes`: the unit of a record's box: `pixels`, `fractions` of the image, or `padded`, fractions of the image padded to a
# square. The others are names of a record's fields.
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


def recognise(source: Source) -> Guess | None:
    """Records with a box, a description, `width` and `height`."""
    box, expression = first_of(BOX, source.fields), first_of(EXPRESSION, source.fields)
    if not box:
        return None
    if not expression or not {"width", "height"} <= source.fields:
        needed = "records with a box need a description (as 'sent'), 'width' and 'height'"
        return Guess(7, problem=no_format(source.path, f"{needed}; they have {', '.join(sorted(source.fields))}"))
    # A value that is not a number is reported by `load`, with its record.
    values = [value for record in source.records for value in _as_list(record[box])]
    fractions = all(isinstance(value, int | float) and 0 <= value <= 1 for value in values)
    image = first_of(IMAGE, source.optional_fields) or "image"
    data = mapped({"image": image, "question": expression, "box": box}, OPTIONS)
    data |= {"boxes": "fractions"} if fractions else {}
    why = f"its records have '{expression}' and '{box}' in {'fractions' if fractions else 'pixels'}"
    return Guess(7, why, data, prompt=BOX_PROMPT, metric="grounding")


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def load(card: TaskCard, split: str, *, data_root: Path | None) -> Sequence[Sample]:
    """Read a split's records (a JSON array or JSON lines); the prompt may name any text of the record, e.g. `{knowledge}`.

    The training answer is the box in thousandths, `[[x1, y1, x2, y2]]`, or in fractions if the record's box is.

    Raises:
        DmoleError: the file is missing or unreadable, or a record is invalid; names the file and the record.
    """
    if card.data["boxes"] not in UNITS:
        raise DmoleError(
            f"{card.path}: invalid data.boxes '{card.data['boxes']}'", f"choose one of: {', '.join(UNITS)}"
        )
    return load_records(card, split, data_root=data_root, parse=partial(_row, keys=card.data), hint=HINT)


def _row(record: Record, *, keys: Mapping[str, str]) -> Row:
    unit = keys["boxes"]
    width, height = record.length(keys["width"]), record.length(keys["height"])
    details = framed(record.numbers(keys["box"], 4), unit=unit, width=width, height=height)
    left, top, right, bottom = details["box"]
    if not (left < right and top < bottom):
        record.invalid(f"the box {details['box']} is empty: left, top, right, bottom are expected")
    answer = box_answer(details, unit=unit)
    return Row(
        record.place,
        question=record.text(keys["question"]),
        answer=answer,
        references=(answer,),
        images=record.images(keys["image"]),
        details=details | identity(record),
        named=record.named_texts(),
    )
