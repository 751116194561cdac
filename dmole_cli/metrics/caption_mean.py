"""Mean of seven caption metrics: BLEU-1 to BLEU-4, METEOR, ROUGE-L and CIDEr."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from dmole_cli.metrics import _bleu
from dmole_cli.metrics._caption_scores import CIDER_MAXIMUM, cider, rouge_l
from dmole_cli.metrics._captions import tokenised
from dmole_cli.metrics._meteor import meteor

# Six metrics of at most 1, and CIDEr of at most 10.
MAXIMUM = (6 + CIDER_MAXIMUM) / 7
# CIDEr's document frequencies are counted over the whole corpus.
DEPENDS_ON_CORPUS = True


def score_corpus(
    predictions: Sequence[str], *, references: Sequence[Sequence[str]], details: Sequence[Mapping[str, Any]]
) -> tuple[list[float], float]:
    """Score every caption and the corpus with the mean of the seven metrics; an empty caption scores 0.

    The corpus' score, which papers report, is the mean of the corpus' seven scores; those of BLEU and METEOR are not the
    means over captions. It can exceed 100 points because CIDEr can. `details` is unused.

    Raises:
        DmoleError: no Java runtime works, or METEOR fails.

    Source: eval_caption.py of https://github.com/Ghy0501/HiDe-LLaVA (the average of UCIT, https://arxiv.org/abs/2503.12941).
    """
    if not predictions:
        return [], 0.0
    captions, truths = tokenised(predictions, references=references)
    by_caption = [rouge_l(captions, truths), cider(captions, truths)]
    tables = [
        *_bleu.score_tokenised(captions, truths),
        meteor(captions, truths),
        *((scores, fmean(scores)) for scores in by_caption),
    ]
    samples = [fmean(scores) for scores in zip(*(scores for scores, _ in tables), strict=True)]
    return samples, fmean(corpus for _, corpus in tables)
