"""BLEU up to n words: what `bleu1` to `bleu4` share."""

from __future__ import annotations

from collections.abc import Sequence

from dmole_cli.metrics._captions import tokenised


def bleu(predictions: Sequence[str], *, references: Sequence[Sequence[str]], words: int) -> tuple[list[float], float]:
    """Compute BLEU of every caption, and of the corpus, between 0 and 1, after tokenising.

    The precisions of one to `words` words in a row, their geometric mean, times the penalty for captions shorter than the
    reference of the closest length. The corpus' BLEU adds up matches and lengths first, so it is not the mean of the
    captions'. A caption without a match of some length does not score exactly 0, because pycocoevalcap puts 1e-15 for no
    match and 1e-9 for no place to match; an empty one does.

    Raises:
        DmoleError: when no Java runtime runs, which the tokeniser needs.

    Source: Papineni, Roukos, Ward, Zhu, https://aclanthology.org/P02-1040/, as pycocoevalcap computes it.
    """
    if not predictions:
        return [], 0.0
    from pycocoevalcap.bleu.bleu import Bleu

    captions, truths = tokenised(predictions, references=references)
    corpus, scores = Bleu(words).compute_score(
        dict(enumerate(truths)), {index: [caption] for index, caption in enumerate(captions)}, verbose=0
    )
    return [float(value) for value in scores[words - 1]], float(corpus[words - 1])
