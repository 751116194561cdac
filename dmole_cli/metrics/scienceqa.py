"""ScienceQA: whether the first one-character word of an answer is the right letter."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

NEEDS_DETAILS = ("options", "answer")

LONE_CHARACTER = re.compile(r"\b\w\b")


def score(
    predictions: Sequence[str], *, references: Sequence[Sequence[str]], details: Sequence[Mapping[str, Any]]
) -> list[float]:
    """Score every answer 1.0 or 0.0 by the letter that `read_letter` finds in it.

    Args:
        predictions: the generated answers.
        references: unused.
        details: per sample `options` (the option texts, A first) and `answer` (the right option's index, from 0).

    Source: CoIN's ScienceQA scoring (https://github.com/zackschen/CoIN).
    """
    return [
        float(read_letter(prediction) == ascii_uppercase[: len(detail["options"])][int(detail["answer"])])
        for prediction, detail in zip(predictions, details, strict=True)
    ]


def read_letter(prediction: str) -> str | None:
    """Return the letter that an answer chooses, upper case, or None.

    The benchmark has three rules: a bare letter, a leading "A. ", the first word of a single character. The last one covers
    the others. It reads digits and pronouns as choices, too ("I think B" chooses I, which is wrong).
    """
    found = LONE_CHARACTER.search(prediction)
    return found.group().upper() if found else None
