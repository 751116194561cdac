"""Grounding: whether the box in an answer has a large enough intersection over union (IoU) with the right one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dmole_cli.errors import DmoleError
from dmole_cli.metrics._box_dialects import first_box
from dmole_cli.metrics._boxes import Box, iou

NEEDS_DETAILS = ("box", "width", "height")

THRESHOLD = 0.5
LARGEST = 1e9  # pixels; a number above it, or one that is not finite, is no coordinate


def score(
    predictions: Sequence[str], *, references: Sequence[Sequence[str]], details: Sequence[Mapping[str, Any]]
) -> list[float]:
    """Score every answer 1.0 when its box overlaps the right one with an IoU of at least 0.5, else 0.0 (Acc@0.5).

    Reports show the mean IoU beside it.

    Args:
        predictions: the generated answers.
        references: unused.
        details: per sample `box` (left, top, right, bottom in pixels), `width` and `height` of the image in pixels.

    Raises:
        DmoleError: a right box has not four finite numbers.

    Source: the RefCOCO and SK-VG scoring of the method's public evaluation code, which reads lists only.
    """
    return [float(overlap >= THRESHOLD) for overlap in ious(predictions, references=references, details=details)]


def ious(
    predictions: Sequence[str], *, references: Sequence[Sequence[str]], details: Sequence[Mapping[str, Any]]
) -> list[float]:
    """Return every answer's intersection over union with the right box, 0.0 where the answer contains no box."""
    return [_iou_of_answer(prediction, detail) for prediction, detail in zip(predictions, details, strict=True)]


def read_box(answer: str, *, width: float, height: float) -> Box | None:
    """Return the first box of an answer in pixels, or None.

    Of `[x1, y1, x2, y2]` and `[[x1, y1, x2, y2]]`, four numbers that sum to 4 or more are thousandths of the image's width and
    height, else fractions of them. `_box_dialects` lists the other notations. Other text in brackets is ignored.
    """
    box = first_box(answer, width=width, height=height)
    return None if box is None else (box[0] * width, box[1] * height, box[2] * width, box[3] * height)


def _iou_of_answer(prediction: str, detail: Mapping[str, Any]) -> float:
    right, width, height = (detail[name] for name in NEEDS_DETAILS)
    numbers: list[Any] = [*right, width, height] if isinstance(right, (list, tuple)) and len(right) == 4 else [None]
    if not all(type(number) in (int, float) and abs(number) < LARGEST for number in numbers) or min(width, height) <= 0:
        raise DmoleError(
            f"the right box {right!r} in {width!r} x {height!r} is no box of four finite numbers",
            "correct 'box', 'width' and 'height' of the sample in the task's annotation file",
        )
    box = read_box(prediction, width=width, height=height)
    return 0.0 if box is None else iou(box, right)


FURTHER = {"mean_iou": ious}
