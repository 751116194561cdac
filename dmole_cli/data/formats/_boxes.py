"""Boxes of grounding records, converted to the coordinate frame in which the metric reads an answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dmole_cli.data.formats._fields import Record, is_finite, is_missing, shown
from dmole_cli.metrics._boxes import Box, iou
from dmole_cli.metrics.grounding import read_box

UNITS = ("pixels", "fractions", "thousandths", "padded")
ALIASES = {"normalised": "fractions", "normalized": "fractions"}
# What the four numbers are, by name; each returns left, top, right, bottom.
CORNERS: Mapping[str, Callable[[float, float, float, float], Box]] = {
    "xyxy": lambda a, b, c, d: (a, b, c, d),
    "yxyx": lambda a, b, c, d: (b, a, d, c),
    "xywh": lambda a, b, c, d: (a, b, a + c, b + d),
    "cxcywh": lambda a, b, c, d: (a - c / 2, b - d / 2, a + c / 2, b + d / 2),
}
# Share of a side by which a box may leave its frame, because its numbers were rounded; it is cut at the frame.
ROUNDING = 1e-3
# Tried in this order by `declaration_of`.
LIKELY = ("fractions", "pixels", "xywh", "thousandths", "thousandths xywh")


@dataclass(frozen=True)
class Declared:
    """The form of a file's boxes, as a card declares it.

    Attributes:
        unit: one of `UNITS`.
        corners: a key of `CORNERS`.
    """

    unit: str = "pixels"
    corners: str = "xyxy"


def declared(text: str) -> Declared | None:
    """Parse a declaration: a unit, what the four numbers are, or both, as `thousandths xywh`; None if it is none."""
    found: dict[str, str] = {}
    for word in text.split():
        name = ALIASES.get(word, word)
        kind = "unit" if name in UNITS else "corners" if name in CORNERS else ""
        if not kind or kind in found:
            return None
        found[kind] = name
    return Declared(**found) if found else None


def framed(box: Sequence[float], *, unit: str, width: float, height: float) -> dict[str, Any]:
    """Return the details that the metric needs: `box` in pixels of a frame of `width` x `height`.

    Args:
        box: left, top, right, bottom.
        unit: `pixels`; `fractions` or `thousandths` of width and height; or `padded`: fractions of the image padded to a square
            around its centre. For `padded` the frame is that square, because the answer's numbers are fractions of it, too.
        width, height: of the image in pixels.
    """
    if unit == "padded":
        width = height = max(width, height)
    if unit != "pixels":
        whole = 1000.0 if unit == "thousandths" else 1.0
        box = [value / whole * side for value, side in zip(box, (width, height, width, height), strict=True)]
    return {"box": [*box], "width": width, "height": height}


def box_of(record: Record, key: str, form: Declared, *, width: float, height: float) -> dict[str, Any]:
    """The details of a record's box, see `framed`; it lies inside of the image and is not empty.

    Raises:
        InvalidRecord: the box has not four finite numbers, is empty, or lies outside of the image.
    """
    numbers = record.numbers(key, 4)
    details = framed(CORNERS[form.corners](*numbers), unit=form.unit, width=width, height=height)
    problem = _problem(details, numbers, form)
    if problem:
        others = [name for name in LIKELY if _fits(numbers, name, width=width, height=height)]
        hint = (
            f'check the record, or declare the form of the boxes: boxes = "{others[0] if others else "xywh"}" in [data]'
        )
        record.invalid(f"the box {shown(record.value[key])} {problem}", hint)
    sides = (details["width"], details["height"]) * 2
    return details | {"box": [min(max(value, 0.0), side) for value, side in zip(details["box"], sides, strict=True)]}


def _problem(details: Mapping[str, Any], numbers: Sequence[float], form: Declared) -> str:
    """What is wrong with a box, empty if nothing is."""
    (left, top, right, bottom), width, height = details["box"], details["width"], details["height"]
    if not (left < right and top < bottom):
        return "is empty: left, top, right, bottom are expected" if form.corners == "xyxy" else "is empty"
    if min(left / width, top / height) < -ROUNDING or max(right / width, bottom / height) > 1 + ROUNDING:
        return f"is outside of the image of {width:g} x {height:g} pixels, if its numbers are {_words(form)}"
    if form.unit in ("pixels", "thousandths") and max(numbers) <= 1 < max(width, height):
        return f"is smaller than 1, so its numbers are not {_words(form)}"
    return ""


def _words(form: Declared) -> str:
    return form.unit if form.corners == "xyxy" else f"{form.unit} ({form.corners})"


def _fits(numbers: Sequence[float], declaration: str, *, width: float, height: float) -> bool:
    form = declared(declaration)
    if form is None:
        return False
    details = framed(CORNERS[form.corners](*numbers), unit=form.unit, width=width, height=height)
    return not _problem(details, numbers, form)


def declaration_of(boxes: Iterable[tuple[Any, Any, Any]]) -> str:
    """The first usual form that all (box, width, height) can have; empty if there is none.

    Values that are not numbers are passed over: `load` reports them with their record.
    """
    valid = [
        (box, width, height)
        for box, width, height in boxes
        if isinstance(box, list)
        and len(box) == 4
        and all(map(is_finite, [*box, width, height]))
        and min(width, height) > 0
    ]
    fitting = (n for n in LIKELY if all(_fits(box, n, width=width, height=height) for box, width, height in valid))
    return next(fitting, "")


def box_answer(details: dict[str, Any], *, unit: str) -> str:
    """Format the box as an answer: thousandths of width and height if `unit` is `pixels` or `thousandths`, else fractions with
    two decimals.
    """
    sides = (details["width"], details["height"]) * 2
    fractions = [value / side for value, side in zip(details["box"], sides, strict=True)]
    if unit in ("pixels", "thousandths"):
        return f"[[{', '.join(str(round(1000 * value)) for value in fractions)}]]"
    return f"[{', '.join(f'{value:.2f}' for value in fractions)}]"


def is_readable(answer: str, details: Mapping[str, Any]) -> bool:
    """Whether the metric reads the box from its own answer; of a box that is too small, only zeros remain."""
    box = read_box(answer, width=details["width"], height=details["height"])
    return box is not None and iou(box, details["box"]) > 0


def check_details(record: Record, details: Mapping[str, Any], needed: Sequence[str]) -> None:
    """Raise `InvalidRecord` if a detail that the metric needs has no value, or if a box is none."""
    missing = next((name for name in needed if name in details and is_missing(details[name])), None)
    if missing is not None:
        record.invalid(f"'{missing}' has no value")
    if "box" in needed and "box" in details:
        left, top, right, bottom = record.numbers("box", 4)
        width, height = (record.length(side) for side in ("width", "height"))
        if not (0 <= left < right <= width * (1 + ROUNDING) and 0 <= top < bottom <= height * (1 + ROUNDING)):
            what = f"the box {shown(details['box'])} is empty, or outside of the image of {width:g} x {height:g} pixels"
            record.invalid(what, "'box' must be left, top, right, bottom in pixels")
