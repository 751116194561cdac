"""ANLS: similarity of an answer's spelling to a reference's, for text read from images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# Below it the answer counts as another text, not as the right one misread.
THRESHOLD = 0.5


def score(
    predictions: Sequence[str], *, references: Sequence[Sequence[str]], details: Sequence[Mapping[str, Any]]
) -> list[float]:
    """Score every answer 0.0, or between 0.5 and 1.0, the best over its references; `details` is unused.

    One minus the edit distance over the length of the longer text, if that is 0.5 or more. The distance is that of the texts
    in lower case, without whitespace around them and with single spaces between words; the length is that of the texts as
    they are. An empty answer scores 0 unless a reference is empty.

    Source: Biten et al., Scene text visual question answering, https://arxiv.org/abs/1905.13648, and the scoring program of the
    Robust Reading Competition, where exactly 0.5 still counts (in the paper's formula it does not) and the length includes
    repeated whitespace.
    """
    return [
        max((_similarity(prediction, reference) for reference in accepted), default=0.0)
        for prediction, accepted in zip(predictions, references, strict=True)
    ]


def _fold(text: str) -> str:
    return " ".join(text.lower().split())


def _similarity(first: str, second: str) -> float:
    longer = max(len(first.upper()), len(second.upper()))  # in upper case, as the program: "ß" has two letters
    if longer == 0:
        return 1.0
    similarity = 1.0 - edit_distance(_fold(first), _fold(second)) / longer
    return similarity if similarity >= THRESHOLD else 0.0


def edit_distance(first: str, second: str) -> int:
    """Smallest number of characters to insert, delete or replace to turn one text into the other (Levenshtein)."""
    row = list(range(len(second) + 1))
    for above, character in enumerate(first, start=1):
        diagonal, row[0] = row[0], above
        for column, other in enumerate(second, start=1):
            replaced = diagonal + (character != other)
            diagonal = row[column]
            row[column] = min(row[column] + 1, row[column - 1] + 1, replaced)
    return row[-1]
