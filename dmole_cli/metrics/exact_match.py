"""Exact match: an answer is right when it equals a reference, case aside (scores one task's answers)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

UNIT_SCALE = 100.0
NEEDS_DETAILS: tuple[str, ...] = ()


def score(
    predictions: Sequence[str], *, references: Sequence[Sequence[str]], details: Sequence[Mapping[str, Any]]
) -> list[float]:
    """Score every answer 1.0 or 0.0, the best over its references; space around and case do not count.

    An empty answer is wrong unless an empty text is itself a reference. `details` is not looked at.

    Source: the scoring of OCR-VQA and KVQA in the method's public evaluation code.
    """
    return [
        float(_fold(prediction) in {_fold(reference) for reference in accepted})
        for prediction, accepted in zip(predictions, references, strict=True)
    ]


def _fold(text: str) -> str:
    return text.strip().lower()
