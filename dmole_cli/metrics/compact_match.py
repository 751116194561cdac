"""Exact match of an answer without its spaces and periods, ignoring case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def score(
    predictions: Sequence[str], *, references: Sequence[Sequence[str]], details: Sequence[Mapping[str, Any]]
) -> list[float]:
    """Score every answer 1.0 when it equals a reference after all its spaces and periods were removed, else 0.0.

    The references are compared as they are, so none with a space can be right. `details` is unused.

    Source: eval_finvis.py of https://github.com/bjzhb666/MLLM-CL, for answers that are Yes, No or a letter.
    """
    return [
        float(prediction.lower().replace(" ", "").replace(".", "") in map(str.lower, accepted))
        for prediction, accepted in zip(predictions, references, strict=True)
    ]
