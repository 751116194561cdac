"""VQA soft accuracy: an answer counts by how many of the people asked gave it too (scores one task's answers)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dmole_cli.metrics._normalising import normalise

UNIT_SCALE = 100.0
NEEDS_DETAILS: tuple[str, ...] = ()

# So many people have to agree, apart from the one left out, for an answer to count in full.
AGREEMENT = 3


def score(
    predictions: Sequence[str], *, references: Sequence[Sequence[str]], details: Sequence[Mapping[str, Any]]
) -> list[float]:
    """Score every answer between 0 and 1 against the answers that people gave to the question.

    The score is the mean, over leaving out one person at a time, of min(1, matches / 3). The benchmarks ask ten
    people; any number from one on works. With fewer than four, three others cannot agree, so all others have to
    (divisor n - 1), and a single reference is plain equality after normalising. `details` is not looked at.

    Source: the VQA challenge's accuracy (https://visualqa.org/evaluation.html) with its server's normaliser.
    """
    return [_soft_accuracy(prediction, answers) for prediction, answers in zip(predictions, references, strict=True)]


def _soft_accuracy(prediction: str, answers: Sequence[str]) -> float:
    people = len(answers)
    answer = normalise(prediction)
    matches = sum(normalise(given) == answer for given in answers)
    if people == 1:
        return float(matches)
    needed = min(AGREEMENT, people - 1)
    # Leaving out one of those who agree leaves one match fewer; leaving out one of the others changes nothing.
    without_a_match = matches * min(1.0, (matches - 1) / needed)
    without_another = (people - matches) * min(1.0, matches / needed)
    return (without_a_match + without_another) / people
