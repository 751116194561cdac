"""MLLM-CL's science questions: equality or, for those about maps, contained names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

NEEDS_DETAILS = ("image", "text")

# Prefixes of the image names of all sources but MapQA.
EXACT = ("AI2D", "TQA", "VQA", "SciVerse")
STATES = "Which states"


def score(
    predictions: Sequence[str], *, references: Sequence[Sequence[str]], details: Sequence[Mapping[str, Any]]
) -> list[float]:
    """Score every answer between 0 and 1, the best over its references, ignoring case.

    An answer to a question of AI2D, TQA, VQA or SciVerse must equal the reference. The other questions are about maps: where
    states are asked for, the score is the share of the reference's names, separated by commas, that are among the answer's; an
    answer to another one must contain the reference. Spaces are parts of the names, as in the benchmark's code.

    Args:
        predictions: the generated answers.
        references: the correct answers.
        details: per sample `image` (the path, whose file name begins with the source) and `text` (the question).

    Source: eval_sci.py of https://github.com/bjzhb666/MLLM-CL; exact are the sources that https://github.com/Ghy0501/MCITlib
    compares exactly.
    """
    return [
        max(_score(prediction.lower(), reference.lower(), detail) for reference in accepted)
        for prediction, accepted, detail in zip(predictions, references, details, strict=True)
    ]


def _score(answer: str, reference: str, detail: Mapping[str, Any]) -> float:
    if PurePosixPath(str(detail["image"])).name.split("_")[0] in EXACT:
        return float(bool(answer) and answer == reference)
    if STATES in str(detail["text"]):
        names, given = reference.split(","), answer.split(",")
        return sum(bool(name) and name in given for name in names) / len(names)
    return float(bool(reference) and reference in answer)
