"""Contained reference: an answer is right when a reference occurs in it, ignoring case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def score(
    predictions: Sequence[str], *, references: Sequence[Sequence[str]], details: Sequence[Mapping[str, Any]]
) -> list[float]:
    """Score every answer 1.0 or 0.0, the best over its references.

    Parts of words count: "abnormal" contains "normal". An empty reference is contained in no answer. `details` is unused.

    Source: eval_pvqa.py of https://github.com/bjzhb666/MLLM-CL.
    """
    return [
        float(any(reference and reference.lower() in prediction.lower() for reference in accepted))
        for prediction, accepted in zip(predictions, references, strict=True)
    ]
