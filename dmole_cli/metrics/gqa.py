"""GQA: an answer is right when it equals a reference, ignoring case and final periods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def score(
    predictions: Sequence[str], *, references: Sequence[Sequence[str]], details: Sequence[Mapping[str, Any]]
) -> list[float]:
    """Score every answer 1.0 or 0.0, the best over its references, after `normalise`; `details` is unused.

    Source: the accuracy of GQA's eval.py (https://cs.stanford.edu/people/dorarad/gqa/), which compares texts as they are,
    after what LLaVA's scripts/convert_gqa_for_eval.py, which CoIN uses as well, does to answers.
    """
    return [
        float(normalise(prediction) in {normalise(reference) for reference in accepted})
        for prediction, accepted in zip(predictions, references, strict=True)
    ]


def normalise(answer: str) -> str:
    """Lower case, without surrounding whitespace and final periods; articles and other punctuation stay."""
    return answer.strip().rstrip(".").strip().lower()
