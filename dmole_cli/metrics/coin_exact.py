"""CoIN's rule for VizWiz and VQA v2: equal to one answer, not to one of ten (scores one task's answers)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

UNIT_SCALE = 100.0
NEEDS_DETAILS: tuple[str, ...] = ()


def score(
    predictions: Sequence[str], *, references: Sequence[Sequence[str]], details: Sequence[Mapping[str, Any]]
) -> list[float]:
    """Score every answer 1.0 when it equals the sample's one answer in upper case, else 0.0.

    The benchmark's own rule asks ten people; this one is kept only to compare with what CoIN published. Space around the
    answer does not count, and nothing else is normalised.

    Args:
        predictions: the model's answers.
        references: looked at where `details` has no `coin_answer`: the one that most people gave, of several the first.
        details: per sample `coin_answer`, the answer in CoIN's own record, if it has one.

    Source: eval_vizwiz.py and eval_vqav2.py of https://github.com/zackschen/CoIN.
    """
    return [
        float(prediction.strip().upper() == _answer(accepted, detail).upper())
        for prediction, accepted, detail in zip(predictions, references, details, strict=True)
    ]


def _answer(accepted: Sequence[str], detail: Mapping[str, Any]) -> str:
    if "coin_answer" in detail:
        return str(detail["coin_answer"])
    return Counter(accepted).most_common(1)[0][0]
