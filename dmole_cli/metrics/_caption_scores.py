"""ROUGE-L and CIDEr of captions that are already tokenised, for the metrics of these names and for `caption_mean`."""

from __future__ import annotations

from collections.abc import Sequence

# The largest CIDEr of a caption; the other caption metrics reach 1.
CIDER_MAXIMUM = 10.0


def rouge_l(captions: Sequence[str], truths: Sequence[Sequence[str]]) -> list[float]:
    """ROUGE-L of every caption; an empty one has 0."""
    from pycocoevalcap.rouge.rouge import Rouge

    rouge = Rouge()
    # pycocoevalcap reads a text without words as one empty word, which two empty texts would share.
    return [
        float(rouge.calc_score([caption], list(known))) if caption else 0.0
        for caption, known in zip(captions, truths, strict=True)
    ]


def cider(captions: Sequence[str], truths: Sequence[Sequence[str]]) -> list[float]:
    """CIDEr of every caption, with the document frequencies of these captions' references."""
    from pycocoevalcap.cider.cider import Cider

    # Without any word, pycocoevalcap fails on the maximum of an empty sequence.
    if not any(caption.split() for known in truths for caption in known):
        return [0.0] * len(captions)
    _, scores = Cider().compute_score(
        {index: list(known) for index, known in enumerate(truths)},
        {index: [caption] for index, caption in enumerate(captions)},
    )
    return [float(value) for value in scores]
