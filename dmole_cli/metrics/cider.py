"""CIDEr: how much of what people say of a picture, and of it alone, a caption says too (scores one task's answers)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dmole_cli.metrics._captions import tokenised

UNIT_SCALE = 100.0
NEEDS_DETAILS: tuple[str, ...] = ()
# How much a word weighs is counted over the whole corpus.
DEPENDS_ON_CORPUS = True


def score(
    predictions: Sequence[str], *, references: Sequence[Sequence[str]], details: Sequence[Mapping[str, Any]]
) -> list[float]:
    """Score every caption between 0 and 10; the mean is the CIDEr of the corpus and is not bounded by 1.

    How much a word weighs depends on how many of the corpus' pictures it describes, so a caption's score is only
    good among the captions it was scored with: a corpus of one picture has nothing to compare with and scores 0.
    An empty caption scores 0. `details` is not looked at.

    Raises:
        DmoleError: when no Java runtime runs, which the tokeniser needs.

    Source: Vedantam, Zitnick, Parikh, https://arxiv.org/abs/1411.5726, as pycocoevalcap computes it.
    """
    return score_tokenised(*tokenised(predictions, references=references))


def score_tokenised(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Score captions whose tokens are already lower case and parted by spaces, as `score` does after tokenising."""
    from pycocoevalcap.cider.cider import Cider

    # Without a single word to count, pycocoevalcap stops at the maximum of nothing.
    if not any(caption.split() for captions in references for caption in captions):
        return [0.0] * len(predictions)
    _, scores = Cider().compute_score(
        {index: list(captions) for index, captions in enumerate(references)},
        {index: [caption] for index, caption in enumerate(predictions)},
    )
    return [float(value) for value in scores]
