"""The metrics against outputs of the public reference implementations."""

import pytest
from golden_vectors import golden_vectors

from dmole_cli.metrics import _caption_scores, grounding, multiple_choice, scienceqa, vqa_accuracy

VECTORS = golden_vectors("reference_vectors")


def test_golden_vqa_accuracy() -> None:
    cases = VECTORS["vqa_soft_accuracy"]
    scores = vqa_accuracy.score(
        [case["prediction"] for case in cases],
        references=[case["answers"] for case in cases],
        details=[{} for _ in cases],
    )
    assert scores == pytest.approx([case["score"] for case in cases], abs=1e-12)


def test_golden_multiple_choice() -> None:
    cases = VECTORS["multiple_choice"]
    scores = multiple_choice.score(
        [case["prediction"] for case in cases],
        references=[[case["answer"]] for case in cases],
        details=[{"options": case["choices"], "answer": case["answer"]} for case in cases],
    )
    letters = [multiple_choice.read_letter(case["prediction"], options=case["choices"]) for case in cases]
    assert scores == [case["score"] for case in cases]
    assert letters == [case["letter"] for case in cases]


def test_golden_scienceqa() -> None:
    cases = VECTORS["scienceqa"]
    scores = scienceqa.score(
        [case["prediction"] for case in cases],
        references=[[] for _ in cases],
        details=[
            {"options": [f"option {n}" for n in range(case["n_choices"])], "answer": case["answer"]} for case in cases
        ],
    )
    letters = [scienceqa.read_letter(case["prediction"]) or "FAILED" for case in cases]
    assert scores == [case["score"] for case in cases]
    assert letters == [case["parsed"] for case in cases]


def test_golden_grounding() -> None:
    cases = VECTORS["grounding"]
    predictions = [case["prediction"] for case in cases]
    # The reference computes in 32-bit floats.
    assert grounding.ious(predictions, references=[[] for _ in cases], details=cases) == pytest.approx(
        [case["iou"] for case in cases], abs=1e-5
    )
    assert grounding.score(predictions, references=[[] for _ in cases], details=cases) == [
        case["score"] for case in cases
    ]


def test_golden_cider() -> None:
    case = VECTORS["cider"]
    names = list(case["references"])
    scores = _caption_scores.cider(
        [case["predictions"][name][0] for name in names], [case["references"][name] for name in names]
    )
    assert scores == pytest.approx([case["per_sample"][name] for name in names], abs=1e-9)
    assert sum(scores) / len(scores) == pytest.approx(case["score"], abs=1e-9)
