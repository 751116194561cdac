"""CIDEr: TF-IDF weighted n-grams that a caption shares with the references of its image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dmole_cli.metrics._caption_scores import CIDER_MAXIMUM, cider
from dmole_cli.metrics._captions import tokenised

MAXIMUM = CIDER_MAXIMUM
# Document frequencies are counted over the whole corpus.
DEPENDS_ON_CORPUS = True


def score(
    predictions: Sequence[str], *, references: Sequence[Sequence[str]], details: Sequence[Mapping[str, Any]]
) -> list[float]:
    """Score every caption between 0 and 10; the mean is the CIDEr of the corpus.

    The weight of an n-gram depends on the number of the corpus' images that it describes, so a score is comparable only within
    the corpus that it was computed with; in a corpus of one image every score is 0. An empty caption scores 0.
    `details` is unused.

    Raises:
        DmoleError: no Java runtime works, which the tokeniser needs.

    Source: Vedantam, Zitnick, Parikh, https://arxiv.org/abs/1411.5726, as pycocoevalcap computes it.
    """
    return cider(*tokenised(predictions, references=references))
