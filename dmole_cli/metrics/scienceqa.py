"""ScienceQA: an answer's first one-character word against the right letter (scores one task's answers)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

UNIT_SCALE = 100.0
NEEDS_DETAILS: tuple[str, ...] = ("options", "answer")

LONE_CHARACTER = re.compile(r"\b\w\b")


def score(
    predictions: Sequence[str], *, references: Sequence[Sequence[str]], details: Sequence[Mapping[str, Any]]
) -> list[float]:
    """Score every answer 1.0 or 0.0 by the letter that `read_letter` finds in it.

    Args:
        predictions: the model's answers.
        references: not looked at.
        details: per sample `options` (the option texts, A first) and `answer` (the right option's index, from 0).

    Source: CoIN's ScienceQA scoring (https://github.com/zackschen/CoIN).
    """
    return [
        float(read_letter(prediction) == ascii_uppercase[: len(detail["options"])][int(detail["answer"])])
        for prediction, detail in zip(predictions, details, strict=True)
    ]


def read_letter(prediction: str) -> str | None:
    """Return the letter that an answer chooses, upper case, or None when it chooses none.

    The benchmark names three rules: a bare letter, a leading "A. ", the first word of a single character. The last
    holds the other two. It takes digits and pronouns for choices too ("I think B" chooses I, which is wrong).
    """
    found = LONE_CHARACTER.search(prediction)
    return found.group().upper() if found else None
