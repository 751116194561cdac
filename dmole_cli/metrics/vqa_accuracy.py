"""VQA soft accuracy: an answer scores by the number of annotators who gave it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dmole_cli.metrics._normalising import normalise

# Annotators, apart from the one left out, who must have given an answer for the full score.
AGREEMENT = 3


def score(
    predictions: Sequence[str], *, references: Sequence[Sequence[str]], details: Sequence[Mapping[str, Any]]
) -> list[float]:
    """Score every answer between 0 and 1 against the annotators' answers.

    The score is the mean, over leaving out one annotator at a time, of min(1, matches / 3). The benchmarks have ten annotators;
    any number works. With fewer than four, all others have to agree (divisor n - 1), and a single reference means equality
    after normalising. `details` is unused.

    Source: the VQA challenge's accuracy (https://visualqa.org/evaluation.html) with its server's normaliser.
    """
    return [_soft_accuracy(prediction, answers) for prediction, answers in zip(predictions, references, strict=True)]


def _soft_accuracy(prediction: str, answers: Sequence[str]) -> float:
    annotators = len(answers)
    answer = normalise(prediction)
    matches = sum(normalise(given) == answer for given in answers)
    if annotators == 1:
        return float(matches)
    needed = min(AGREEMENT, annotators - 1)
    # Leaving out an annotator who agrees leaves one match fewer; leaving out another changes nothing.
    without_a_match = matches * min(1.0, (matches - 1) / needed)
    without_another = (annotators - matches) * min(1.0, matches / needed)
    return (without_a_match + without_another) / annotators
