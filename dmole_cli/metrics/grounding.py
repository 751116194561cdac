"""Grounding: whether the box in an answer has a large enough intersection over union (IoU) with the right one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from dmole_cli.metrics._boxes import Box, iou

NEEDS_DETAILS = ("box", "width", "height")

THRESHOLD = 0.5
_NUMBER = r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*"
BRACKETED_BOX = re.compile(rf"\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]")
# Fractions of the image sum to less than this (a box over the whole image to 2); larger numbers are thousandths.
LEAST_SUM_OF_THOUSANDTHS = 4.0


def score(
    predictions: Sequence[str], *, references: Sequence[Sequence[str]], details: Sequence[Mapping[str, Any]]
) -> list[float]:
    """Score every answer 1.0 when its box overlaps the right one with an IoU of at least 0.5, else 0.0 (Acc@0.5).

    Reports show the mean IoU beside it.

    Args:
        predictions: the generated answers.
        references: unused.
        details: per sample `box` (left, top, right, bottom in pixels), `width` and `height` of the image in pixels.

    Source: the RefCOCO and SK-VG scoring of the method's public evaluation code.
    """
    return [float(overlap >= THRESHOLD) for overlap in ious(predictions, references=references, details=details)]


def ious(
    predictions: Sequence[str], *, references: Sequence[Sequence[str]], details: Sequence[Mapping[str, Any]]
) -> list[float]:
    """Return every answer's intersection over union with the right box, 0.0 where the answer contains no box."""
    return [_iou_of_answer(prediction, detail) for prediction, detail in zip(predictions, details, strict=True)]


def read_box(answer: str, *, width: float, height: float) -> Box | None:
    """Return the first `[x1, y1, x2, y2]` or `[[x1, y1, x2, y2]]` of an answer in pixels, or None.

    Four numbers that sum to 4 or more are thousandths of the image's width and height, else fractions of them.
    Other text in brackets is ignored.
    """
    found = BRACKETED_BOX.search(answer)
    if found is None:
        return None
    left, top, right, bottom = (float(number) for number in found.groups())
    unit = 1000.0 if left + top + right + bottom >= LEAST_SUM_OF_THOUSANDTHS else 1.0
    return left / unit * width, top / unit * height, right / unit * width, bottom / unit * height


def _iou_of_answer(prediction: str, detail: Mapping[str, Any]) -> float:
    box = read_box(prediction, width=detail["width"], height=detail["height"])
    return 0.0 if box is None else iou(box, detail["box"])


FURTHER = {"mean_iou": ious}
