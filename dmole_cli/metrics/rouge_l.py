"""ROUGE-L: the longest common subsequence of words of caption and reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dmole_cli.metrics._caption_scores import rouge_l
from dmole_cli.metrics._captions import tokenised


def score(
    predictions: Sequence[str], *, references: Sequence[Sequence[str]], details: Sequence[Mapping[str, Any]]
) -> list[float]:
    """Score every caption between 0 and 1; the mean is the corpus' score. `details` is unused.

    The F-measure (beta 1.2) of the subsequence's share of the caption and its share of the reference, each the maximum over
    the references. An empty caption scores 0.

    Raises:
        DmoleError: no Java runtime works, which the tokeniser needs.

    Source: Lin, https://aclanthology.org/W04-1013/, as pycocoevalcap computes it.
    """
    return rouge_l(*tokenised(predictions, references=references)) if predictions else []
