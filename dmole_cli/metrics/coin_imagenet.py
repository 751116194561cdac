"""CoIN's rule for ImageNet: answer or reference is a substring of the other; only for comparisons with CoIN."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def score(
    predictions: Sequence[str], *, references: Sequence[Sequence[str]], details: Sequence[Mapping[str, Any]]
) -> list[float]:
    """Score every answer 1.0 when it is a substring of a reference or contains one, case-sensitive, else 0.0.

    An empty answer is a substring of every text and therefore right, and so is a single letter of the reference: a mistake of
    the benchmark, reproduced for comparisons with its published scores. Whitespace around the answer is ignored; `details` is
    unused.

    Source: eval_ImagetNet.py of https://github.com/zackschen/CoIN.
    """
    return [
        float(any(prediction.strip() in reference or reference in prediction.strip() for reference in accepted))
        for prediction, accepted in zip(predictions, references, strict=True)
    ]
