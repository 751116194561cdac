"""CoIN's rule for VizWiz and VQA v2: equality with a single answer instead of ten."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any


def score(
    predictions: Sequence[str], *, references: Sequence[Sequence[str]], details: Sequence[Mapping[str, Any]]
) -> list[float]:
    """Score every answer 1.0 when it equals the sample's one answer in upper case, else 0.0.

    The benchmarks' own rule uses the answers of ten people; this one exists only for comparisons with CoIN's published scores.
    Whitespace around the answer is ignored; nothing else is normalised.

    Args:
        predictions: the generated answers.
        references: used where `details` has no `coin_answer`: the most frequent one, the first of several.
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
