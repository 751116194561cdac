"""Exact match: an answer is right when it equals a reference, ignoring case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# A list of all possible answers needs no more than this comparison.
CLOSED_ANSWERS = True


def score(
    predictions: Sequence[str], *, references: Sequence[Sequence[str]], details: Sequence[Mapping[str, Any]]
) -> list[float]:
    """Score every answer 1.0 or 0.0, the best over its references, ignoring case and surrounding whitespace.

    An empty answer is wrong unless a reference is empty. `details` is unused.

    Source: the scoring of OCR-VQA and KVQA in the method's public evaluation code.
    """
    return [
        float(_fold(prediction) in {_fold(reference) for reference in accepted})
        for prediction, accepted in zip(predictions, references, strict=True)
    ]


def _fold(text: str) -> str:
    return text.strip().lower()
