"""METEOR: words that caption and reference share, matched by form, stem, synonym and paraphrase."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dmole_cli.metrics._captions import tokenised
from dmole_cli.metrics._meteor import meteor


def score_corpus(
    predictions: Sequence[str], *, references: Sequence[Sequence[str]], details: Sequence[Mapping[str, Any]]
) -> tuple[list[float], float]:
    """Score every caption between 0 and 1, the best over its references, and the corpus; an empty caption scores 0.

    The corpus' score, which papers report, sums the matches of all captions first, so it is not the mean. Version 1.5 for
    English, with normalisation after tokenising. Starting it takes seconds and about 1 GB of memory. `details` is unused.

    Raises:
        DmoleError: no Java runtime works, or METEOR fails.

    Source: Denkowski, Lavie, https://aclanthology.org/W14-3348/; the program comes with pycocoevalcap.
    """
    if not predictions:
        return [], 0.0
    return meteor(*tokenised(predictions, references=references))
