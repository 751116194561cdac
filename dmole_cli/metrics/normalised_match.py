"""Normalised exact match: equality that ignores articles, punctuation and the spelling of numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dmole_cli.metrics._normalising import normalise


def score(
    predictions: Sequence[str], *, references: Sequence[Sequence[str]], details: Sequence[Mapping[str, Any]]
) -> list[float]:
    """Score every answer 1.0 or 0.0, the best over its references, both normalised as in the VQA challenge.

    An answer that normalises to nothing ("", "the") is wrong. `details` is unused.

    Source: the normaliser of the VQA challenge (https://visualqa.org/evaluation.html), with equality in place of its soft score.
    """
    return [
        float(bool(normalise(prediction)) and normalise(prediction) in map(normalise, accepted))
        for prediction, accepted in zip(predictions, references, strict=True)
    ]
