"""Contained reference without spaces: as `contains`, with spaces, line ends and periods removed from both texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def score(
    predictions: Sequence[str], *, references: Sequence[Sequence[str]], details: Sequence[Mapping[str, Any]]
) -> list[float]:
    """Score every answer 1.0 or 0.0, the best over its references, ignoring case.

    Parts of numbers count: "12" contains "1". An empty reference is contained in no answer. `details` is unused.

    Source: eval_sat.py of https://github.com/bjzhb666/MLLM-CL.
    """
    return [
        float(any(_compact(reference) and _compact(reference) in _compact(prediction) for reference in accepted))
        for prediction, accepted in zip(predictions, references, strict=True)
    ]


def _compact(text: str) -> str:
    return text.lower().strip().replace(" ", "").replace("\n", "").replace(".", "")
