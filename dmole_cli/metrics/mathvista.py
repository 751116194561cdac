"""MathVista without a language model: the option, number or text that rules read from an answer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from dmole_cli.errors import DmoleError

NEEDS_DETAILS = ("question_type", "answer_type")
CHOICE = "multi_choice"
NUMBER = re.compile(r"-?(?:\d[\d,]*)?\.?\d+")
MARKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))


def score(
    predictions: Sequence[str], *, references: Sequence[Sequence[str]], details: Sequence[Mapping[str, Any]]
) -> list[float]:
    """Score every answer 1.0 or 0.0.

    The benchmark lets a language model (GPT-4o mini in MLLM-CL) read what an answer says, except where its rules find the option.
    Here rules read all of it: the option as there; of an integer or a decimal number the last number of the answer; of a
    text or a list the whole answer, ignoring case and spaces. So scores of models that answer in sentences are lower.

    Args:
        predictions: the generated answers.
        references: the correct answers.
        details: per sample `question_type` (`multi_choice`, `free_form`) and `answer_type` (`integer`, `float`, `text`,
            `list`); for `multi_choice` also `choices` and, if there is one, `answer_option`, the correct letter.

    Source: eval_math.py of https://github.com/bjzhb666/MLLM-CL, after VLMEvalKit and https://arxiv.org/abs/2310.02255.
    """
    return [
        float(any(_right(prediction, reference, detail) for reference in accepted))
        for prediction, accepted, detail in zip(predictions, references, details, strict=True)
    ]


def _right(answer: str, reference: str, detail: Mapping[str, Any]) -> bool:
    if detail["question_type"] == CHOICE:
        choices = [str(choice) for choice in detail.get("choices") or ()]
        if not choices:
            raise DmoleError(
                "a sample of mathvista with question_type 'multi_choice' has no 'choices'",
                "the details of a sample need the list of its options",
            )
        chosen = read_option(answer, choices=choices)
        expected = detail.get("answer_option") or reference
        return chosen is not None and expected in (chosen, choices[ascii_uppercase.index(chosen)])
    if detail["answer_type"] in ("integer", "float"):
        found, expected = read_number(answer), read_number(reference)
        return found is not None and found == expected
    return bool(answer.strip()) and _folded(answer) == _folded(reference)


def read_option(answer: str, *, choices: Sequence[str]) -> str | None:
    """The letter of the option that an answer chooses: the only option's letter among its words, else the only option in it."""
    letters = ascii_uppercase[: len(choices)]
    words = answer.translate(MARKS).split()
    found = [letter for letter in letters if letter in words]
    if not found:
        found = [
            letter for letter, text in zip(letters, choices, strict=False) if text and text.lower() in answer.lower()
        ]
    return found[0] if len(found) == 1 else None


def read_number(text: str) -> float | None:
    """The last number in a text; commas separate thousands."""
    found = NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


def _folded(text: str) -> str:
    return "".join(text.lower().split())
