"""OCRBench: an answer is right when it contains a reference; formulas are compared without spaces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

NEEDS_DETAILS = ("answer_type",)
FORMULAS = "Handwritten Mathematical Expression Recognition"


def score(
    predictions: Sequence[str], *, references: Sequence[Sequence[str]], details: Sequence[Mapping[str, Any]]
) -> list[float]:
    """Score every answer 1.0 or 0.0, the best over its references.

    Case and line ends are ignored, in formulas (LaTeX) spaces and line ends instead. An empty reference is contained in no
    answer. The benchmark's final score, the number of right answers of 1000, is ten times the mean in points.

    Args:
        predictions: the generated answers.
        references: the correct answers.
        details: per sample `answer_type`, the kind of question.

    Source: eval_ocr.py of https://github.com/bjzhb666/MLLM-CL, after VLMEvalKit and https://arxiv.org/abs/2305.07895.
    """
    return [
        float(any(_contains(prediction, reference, str(detail["answer_type"])) for reference in accepted))
        for prediction, accepted, detail in zip(predictions, references, details, strict=True)
    ]


def _contains(answer: str, reference: str, kind: str) -> bool:
    answer, reference = (
        text.strip().replace(" ", "").replace("\n", "") if kind == FORMULAS else text.lower().strip().replace("\n", "")
        for text in (answer, reference)
    )
    return bool(reference) and reference in answer
