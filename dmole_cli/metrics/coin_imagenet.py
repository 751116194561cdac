"""CoIN's rule for ImageNet: answer or reference is part of the other (scores one task's answers; not to be used otherwise)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

UNIT_SCALE = 100.0
NEEDS_DETAILS: tuple[str, ...] = ()


def score(
    predictions: Sequence[str], *, references: Sequence[Sequence[str]], details: Sequence[Mapping[str, Any]]
) -> list[float]:
    """Score every answer 1.0 when it stands in a reference or a reference in it, letter by letter, case and all.

    An empty answer stands in every text, so it is right, and so is a single letter of the reference: a mistake of the
    benchmark, kept only to compare with what it published. Space around the answer does not count; `details` is not
    looked at.

    Source: eval_ImagetNet.py of https://github.com/zackschen/CoIN.
    """
    return [
        float(any(prediction.strip() in reference or reference in prediction.strip() for reference in accepted))
        for prediction, accepted in zip(predictions, references, strict=True)
    ]
