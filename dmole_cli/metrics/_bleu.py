"""BLEU with n-grams of up to a given length, for `bleu1` to `bleu4`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dmole_cli.metrics._captions import tokenised


def bleu(
    predictions: Sequence[str],
    *,
    references: Sequence[Sequence[str]],
    details: Sequence[Mapping[str, Any]],
    order: int,
) -> tuple[list[float], float]:
    """BLEU of every caption and of the corpus, between 0 and 1, after tokenising.

    The geometric mean of the precisions of 1- to `order`-grams, times the brevity penalty against the reference of the closest
    length. The corpus' BLEU sums matches and lengths first, so it is not the mean of the captions'. A caption without a match
    of some length does not score exactly 0, because pycocoevalcap adds 1e-15 to the matches and 1e-9 to the n-grams; an empty
    caption scores 0. `details` is unused.

    Raises:
        DmoleError: no Java runtime works, which the tokeniser needs.

    Source: Papineni, Roukos, Ward, Zhu, https://aclanthology.org/P02-1040/, as pycocoevalcap computes it.
    """
    if not predictions:
        return [], 0.0
    return score_tokenised(*tokenised(predictions, references=references), order=order)[-1]


def score_tokenised(
    captions: Sequence[str], truths: Sequence[Sequence[str]], *, order: int = 4
) -> list[tuple[list[float], float]]:
    """BLEU-1 to BLEU-`order` of captions that are already tokenised, at least one: of every caption, and of the corpus."""
    from pycocoevalcap.bleu.bleu import Bleu

    corpus, scores = Bleu(order).compute_score(
        {index: list(known) for index, known in enumerate(truths)},
        {index: [caption] for index, caption in enumerate(captions)},
        verbose=0,
    )
    return [([float(value) for value in values], float(total)) for values, total in zip(scores, corpus, strict=True)]
