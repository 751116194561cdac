"""Grounding: records with a description of an object in the image, and the box around the object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmole_cli.data.formats._arrow import Row
from dmole_cli.data.formats._boxes import (
    CORNERS,
    UNITS,
    Declared,
    box_answer,
    box_of,
    declaration_of,
    declared,
    is_readable,
)
from dmole_cli.data.formats._fields import Record, identity
from dmole_cli.data.formats._recognition import BOX, BOX_PROMPT, EXPRESSION, IMAGE, first_of, mapped, no_format
from dmole_cli.data.formats._rows import FILE_OPTIONS, load_records
from dmole_cli.data.formats.base import Guess, Source
from dmole_cli.data.sample import Sample
from dmole_cli.errors import DmoleError

if TYPE_CHECKING:
    from dmole_cli.data.card import TaskCard

HINT = 'a record is {"image": "a.jpg", "sent": "the man ...", "bbox": [x1, y1, x2, y2], "width": 640, "height": 480}'

# `boxes`: the unit of a record's box: `pixels`, `fractions` (or `normalised`) or `thousandths` of the image, or `padded`,
# fractions of the image padded to a square; and what its numbers are, where they are not left, top, right, bottom: `xywh`,
# `cxcywh`, `yxyx`, alone or after a unit. The others are names of a record's fields.
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
    sides = ((record[box], record["width"], record["height"]) for record in source.records)
    form = declaration_of(sides)
    if not form:
        what = f"no usual form fits the boxes in '{box}' of its first {len(source.records)} records"
        return Guess(7, problem=no_format(source.path, f"{what}: pixels, fractions, thousandths or xywh"))
    image = first_of(IMAGE, source.optional_fields) or "image"
    data = mapped({"image": image, "question": expression, "box": box}, OPTIONS)
    data |= {"boxes": form} if form != OPTIONS["boxes"] else {}
    why = f"its records have '{expression}' and '{box}' in {'pixels (xywh)' if form == 'xywh' else form}"
    return Guess(7, why, data, prompt=BOX_PROMPT, metric="grounding")


def load(card: TaskCard, split: str, *, data_root: Path | None) -> Sequence[Sample]:
    """Read a split's records (a JSON array or JSON lines); the prompt may name any text of the record, e.g. `{knowledge}`.

    The training answer is the box in thousandths, `[[x1, y1, x2, y2]]`, or in fractions if the record's box is. Boxes must lie
    inside of the image.

    Raises:
        DmoleError: the file is missing or unreadable, or a record is invalid; names the file and the record.
    """
    form = declared(card.data["boxes"])
    if form is None:
        hint = f"choose one of {', '.join(UNITS)}, or one of {', '.join(CORNERS)}, or one of each"
        raise DmoleError(f"{card.path}: invalid data.boxes '{card.data['boxes']}'", hint)
    parse = partial(_row, keys=card.data, form=form)
    return load_records(card, split, data_root=data_root, parse=parse, hint=HINT)


def _row(record: Record, *, keys: Mapping[str, str], form: Declared) -> Row:
    width, height = record.length(keys["width"]), record.length(keys["height"])
    details = box_of(record, keys["box"], form, width=width, height=height)
    answer = box_answer(details, unit=form.unit)
    if not is_readable(answer, details):
        record.invalid(f"the box {details['box']} is too small to be written as {answer}", "remove the record")
    return Row(
        record.place,
        question=record.text(keys["question"]),
        answer=answer,
        references=(answer,),
        images=record.images(keys["image"]),
        details=details | identity(record),
        named=record.named_texts(),
    )
