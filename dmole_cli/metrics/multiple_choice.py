"""Multiple choice: whether the option letter read from an answer is the right one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from dmole_cli.errors import DmoleError

NEEDS_DETAILS = ("options",)


def score(
    predictions: Sequence[str], *, references: Sequence[Sequence[str]], details: Sequence[Mapping[str, Any]]
) -> list[float]:
    """Score every answer 1.0 or 0.0 by the letter that `read_letter` finds in it.

    Args:
        predictions: the generated answers.
        references: per sample, first the right letter or the right option's text; used where `answer` is not given.
        details: per sample `options` (the option texts, A first), and `answer` (the right letter or text) if there
            is one. Each sample has its own options.

    Raises:
        DmoleError: a right answer is neither a letter nor the text of one of its sample's options.

    Source: the IconQA and PMC-VQA scoring of the method's public evaluation code, which took the first sample's
    options for the whole batch.
    """
    return [
        float(
            read_letter(prediction, options=detail["options"])
            == _right_letter(detail.get("answer", accepted[0] if accepted else ""), detail["options"])
        )
        for prediction, accepted, detail in zip(predictions, references, details, strict=True)
    ]


def read_letter(prediction: str, *, options: Sequence[str]) -> str:
    """Return the letter that an answer chooses, or the stripped answer itself when no rule reads one from it.

    A single character is returned as it is; else the first character, if that is the letter of an option (so "Apple" chooses
    A); else the first option whose text occurs in the answer, case-sensitive. An empty answer chooses nothing.
    """
    answer = prediction.strip()
    if len(answer) <= 1:
        return answer
    letters = ascii_uppercase[: len(options)]
    if answer[0] in letters:
        return answer[0]
    # An empty option would be a substring of every answer.
    found = (letter for letter, text in zip(letters, options, strict=False) if text and text in answer)
    return next(found, answer)


def _right_letter(answer: str, options: Sequence[str]) -> str:
    letters = ascii_uppercase[: len(options)]
    # Options may themselves read "A", "B" in another order: a single character is a letter before it is a text.
    if len(answer) == 1 and answer in letters:
        return answer
    if answer in options:
        return letters[list(options).index(answer)]
    raise DmoleError(
        f"the right answer {answer!r} is neither a letter nor the text of one of the {len(options)} options",
        "correct the sample's answer or its options in the task's annotation file",
    )
