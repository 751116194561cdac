"""Boxes of grounding records, converted to the coordinate frame in which the metric reads an answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

UNITS = ("pixels", "fractions", "padded")


def framed(box: Sequence[float], *, unit: str, width: float, height: float) -> dict[str, Any]:
    """Return the details that the metric needs: `box` in pixels of a frame of `width` x `height`.

    Args:
        box: left, top, right, bottom.
        unit: `pixels`; `fractions` of width and height; or `padded`: fractions of the image padded to a square around its
            centre. For `padded` the frame is that square, because the answer's numbers are fractions of it, too.
        width, height: of the image in pixels.
    """
    if unit == "padded":
        width = height = max(width, height)
    if unit != "pixels":
        box = [value * side for value, side in zip(box, (width, height, width, height), strict=True)]
    return {"box": [*box], "width": width, "height": height}


def box_answer(details: dict[str, Any], *, unit: str) -> str:
    """Format the box as an answer: thousandths of width and height if `unit` is `pixels`, else fractions with two decimals."""
    sides = (details["width"], details["height"]) * 2
    fractions = [value / side for value, side in zip(details["box"], sides, strict=True)]
    if unit == "pixels":
        return f"[[{', '.join(str(round(1000 * value)) for value in fractions)}]]"
    return f"[{', '.join(f'{value:.2f}' for value in fractions)}]"
