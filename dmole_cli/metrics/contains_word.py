"""Contained word: an answer is right when a reference occurs in it at the edge of a word, ignoring case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def score(
    predictions: Sequence[str], *, references: Sequence[Sequence[str]], details: Sequence[Mapping[str, Any]]
) -> list[float]:
    """Score every answer 1.0 or 0.0, the best over its references.

    A reference of several words, or an answer of one word, is compared as by `contains`. In an answer of several words, a
    reference of one word, without its periods, must begin after a space or end before a space, a period or a comma.
    An empty reference is contained in no answer. `details` is unused.

    Source: eval_ai2d.py of https://github.com/Ghy0501/MCITlib, as https://github.com/haodotgu/EBLoRA has it; the one of
    https://github.com/bjzhb666/MLLM-CL is `contains`.
    """
    return [
        float(any(_contains(prediction.lower(), reference.lower()) for reference in accepted))
        for prediction, accepted in zip(predictions, references, strict=True)
    ]


def _contains(answer: str, reference: str) -> bool:
    word = reference if " " in reference else reference.replace(".", "")
    if not word:
        return False
    if " " in word or " " not in answer:
        return word in answer
    return any(part in answer for part in (f" {word}", f"{word} ", f"{word}.", f"{word},"))
