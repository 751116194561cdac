"""CoIN's rule for grounding: IoU above 0.5, with the box as its parser reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dmole_cli.metrics._boxes import Box, iou

NEEDS_DETAILS = ("box", "width", "height")

THRESHOLD = 0.5


def score(
    predictions: Sequence[str], *, references: Sequence[Sequence[str]], details: Sequence[Mapping[str, Any]]
) -> list[float]:
    """Score every answer 1.0 when the IoU of its box, as `read_box` reads it, is above 0.5, else 0.0.

    The parser loses digits; the metric exists only for comparisons with CoIN's published scores.

    Args:
        predictions: the generated answers.
        references: unused.
        details: per sample `box` (left, top, right, bottom in pixels), `width` and `height` of the frame in pixels.

    Source: eval_grounding.py of https://github.com/zackschen/CoIN.
    """
    return [
        float(_overlap(prediction, detail) > THRESHOLD) for prediction, detail in zip(predictions, details, strict=True)
    ]


def read_box(answer: str) -> Box | None:
    """Return an answer's box in fractions of the frame, or None where it is not four numbers separated by commas.

    All brackets are removed, and then the first and the last remaining character, which are digits of the first and the last
    number where there was only one pair of brackets: "[0.12, 0.3, 0.5, 0.78]" is .12, 0.3, 0.5, 0.7.
    """
    inside = answer.strip().replace("[", "").replace("]", "")[1:-1]
    try:
        left, top, right, bottom = (float(number) for number in inside.split(","))
    except ValueError:
        return None
    return left, top, right, bottom


def _overlap(prediction: str, detail: Mapping[str, Any]) -> float:
    box = read_box(prediction)
    if box is None:
        return 0.0
    width, height = detail["width"], detail["height"]
    return iou((box[0] * width, box[1] * height, box[2] * width, box[3] * height), detail["box"])
