"""GQA: an answer is right when it equals the reference, case and a final period aside (scores one task's answers)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

UNIT_SCALE = 100.0
NEEDS_DETAILS: tuple[str, ...] = ()


def score(
    predictions: Sequence[str], *, references: Sequence[Sequence[str]], details: Sequence[Mapping[str, Any]]
) -> list[float]:
    """Score every answer 1.0 or 0.0, the best over its references, after `normalise`; `details` is not looked at.

    Source: the accuracy of GQA's eval.py (https://cs.stanford.edu/people/dorarad/gqa/), which compares texts as they are,
    after what LLaVA's scripts/convert_gqa_for_eval.py, which CoIN uses as well, does to answers.
    """
    return [
        float(normalise(prediction) in {normalise(reference) for reference in accepted})
        for prediction, accepted in zip(predictions, references, strict=True)
    ]


def normalise(answer: str) -> str:
    """Lower case, without space around it and without periods at its end; articles and all other marks stay."""
    return answer.strip().rstrip(".").strip().lower()
