"""The rules of UCIT, MLLM-DCL and MLLM-ACL and the averages of their tables, by numbers computed by hand."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import pytest

from dmole_cli.errors import DmoleError
from dmole_cli.metrics import (
    _bleu,
    _caption_scores,
    _captions,
    caption_mean,
    compact_match,
    contains,
    contains_compact,
    contains_word,
    mathvista,
    meteor,
    mllm_cl_science,
    ocrbench,
)
from dmole_cli.metrics.base import load_metric
from dmole_cli.reports.continual import continual_scores


def one(metric: Any, answer: str, *references: str, **detail: Any) -> float:
    [score] = metric.score([answer], references=[references], details=[detail])
    return float(score)


def test_a_contained_reference_is_right() -> None:
    assert one(contains, "It is a Gastric Ulcer.", "no", "gastric ulcer") == 1.0
    assert one(contains, "abnormal", "normal") == 1.0, "a part of a word"
    assert one(contains, "normal", "abnormal") == 0.0
    assert one(contains, "anything", "") == one(contains, "", "") == 0.0


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("a rural area", "rural", True),
        ("It is rural.", "Rural", True),
        ("rural, I think", "rural", True),
        ("rurally speaking it is not", "rural", False),
        ("it is unruly", "rul", False),
        ("going straight on", "straight on", True),
        ("rurally", "rural", True),  # an answer of one word
        ("no. 5", "no.", True),
        ("anything", "", False),
        ("a b", ".", False),
    ],
)
def test_a_contained_word_is_right_at_an_edge(answer: str, reference: str, right: bool) -> None:
    assert one(contains_word, answer, reference) == right


def test_spaces_and_periods_do_not_count() -> None:
    assert one(contains_compact, "The answer is ( C ) 4 .", "(C) 4") == 1.0
    assert one(contains_compact, "12", "1") == 1.0
    assert one(contains_compact, "(B) 4", "(C) 4") == one(contains_compact, "x", ".") == 0.0
    assert one(compact_match, " YES. ", "Yes") == one(compact_match, "b", "A", "B") == 1.0
    assert one(compact_match, "Yes it is", "Yes") == one(compact_match, "", "Yes") == 0.0
    assert one(compact_match, "no idea", "no idea") == 0.0, "a reference keeps its space"


def test_science_depends_on_the_source_and_the_question() -> None:
    exact = {"image": "images/AI2D_7.png", "text": "Which part is this?"}
    assert one(mllm_cl_science, "Larva", "larva", **exact) == 1.0
    assert one(mllm_cl_science, "the larva", "larva", **exact) == 0.0
    assert one(mllm_cl_science, "", "", **exact) == 0.0
    states = {"image": "images/MapQA_7.png", "text": "Which states have the highest value?"}
    assert one(mllm_cl_science, "ohio,Texas", "Ohio,Utah,Texas,Maine", **states) == 0.5
    assert one(mllm_cl_science, "Ohio, Texas", "Ohio,Texas", **states) == 0.5, "a space is a part of the name"
    assert one(mllm_cl_science, "", "Ohio", **states) == 0.0
    other = states | {"text": "What is the highest value?"}
    assert one(mllm_cl_science, "It is 5-10 percent.", "5-10", **other) == 1.0
    assert one(mllm_cl_science, "It is 5.", "5-10", **other) == one(mllm_cl_science, "it", "", **other) == 0.0


def test_ocrbench_reads_formulas_without_spaces() -> None:
    text = {"answer_type": "Regular Text Recognition"}
    formula = {"answer_type": "Handwritten Mathematical Expression Recognition"}
    assert one(ocrbench, "It says CENTRE\nPARK", "center park", "centrepark", **text) == 1.0
    assert one(ocrbench, "centre park", "centrepark", **text) == 0.0
    assert one(ocrbench, "$ \\frac { 1 } { X } $", "\\frac{1}{X}", **formula) == 1.0
    assert one(ocrbench, "\\frac{1}{x}", "\\frac{1}{X}", **formula) == 0.0, "case counts in formulas"
    assert one(ocrbench, "anything", "", **text) == 0.0


def test_mathvista_reads_options_numbers_and_texts() -> None:
    options = {"question_type": "multi_choice", "answer_type": "text", "choices": ["Yes", "No"], "answer_option": "B"}
    for answer in ("B", "(B) No", "The answer is B.", "no"):
        assert one(mathvista, answer, "No", **options) == 1.0
    for answer in ("A", "A or B", "yes and no", "", "C"):
        assert one(mathvista, answer, "No", **options) == 0.0
    assert one(mathvista, "B", "No", **options | {"answer_option": ""}) == 1.0, "the text of the option decides"
    number = {"question_type": "free_form", "answer_type": "float"}
    assert one(mathvista, "2 x 600.10 is 1,200.20", "1200.2", **number) == 1.0
    assert one(mathvista, "-3", "3", **number) == one(mathvista, "none", "3", **number) == 0.0
    free = {"question_type": "free_form", "answer_type": "list"}
    assert one(mathvista, " [1,2] ", "[1, 2]", **free) == 1.0
    assert one(mathvista, "", "", **free) == one(mathvista, "it is [1, 2]", "[1, 2]", **free) == 0.0
    with pytest.raises(DmoleError, match="no 'choices'"):
        one(mathvista, "B", "B", question_type="multi_choice", answer_type="text")


def test_the_mean_of_captions_is_that_of_the_seven(monkeypatch: pytest.MonkeyPatch) -> None:
    """METEOR starts once: what it said is kept for the comparison."""
    kept = []

    def remembered(captions: list[str], truths: list[list[str]]) -> tuple[list[float], float]:
        kept.append(meteor.meteor(captions, truths))
        return kept[-1]

    monkeypatch.setattr(caption_mean, "meteor", remembered)
    captions = ["a red bike leans on it", "a dog sleeps", ""]
    truths = [["a red bike leans on it"], ["A big dog sleeps.", "one dog rests"], ["a cat"]]
    scores, corpus = caption_mean.score_corpus(captions, references=truths, details=[{}] * 3)
    said, known = _captions.tokenised(captions, references=truths)
    bleu = _bleu.score_tokenised(said, known)
    rouge, cider = _caption_scores.rouge_l(said, known), _caption_scores.cider(said, known)
    [(by_caption, of_all)] = kept
    assert corpus == pytest.approx((sum(total for _, total in bleu) + of_all + fmean(rouge) + fmean(cider)) / 7)
    for index in range(3):
        seven = [values[index] for values, _ in bleu] + [by_caption[index], rouge[index], cider[index]]
        assert scores[index] == pytest.approx(sum(seven) / 7)
    # A perfect caption of words that no other image has: six times 1 and a CIDEr of 10.
    assert scores[0] == pytest.approx(16 / 7) and scores[2] == 0.0
    assert load_metric("caption_mean").MAXIMUM == 16 / 7


def test_the_averages_are_those_of_mcitlib() -> None:
    """A published matrix, worked by hand: LoRA on UCIT, as an author of MCITlib lists it."""
    seen = [
        [90.5],
        [90.1, 91.67],
        [69.83, 90.13, 61.55],
        [74.4, 71.1, 56.08, 53.83],
        [67.73, 70.63, 53.61, 52.23, 71.67],
        [23.5, 73.37, 47.35, 51.83, 63.57, 58.17],
    ]
    # What MCITlib never measures does not enter its averages.
    scores = continual_scores([[None] * 6, *(row + [None] * (6 - len(row)) for row in seen)])
    means = scores.averages | {"bwt": scores.mean["bwt"]}
    assert means["mft"] == pytest.approx(427.39 / 6)
    assert means["mfn"] == pytest.approx(317.79 / 6)
    assert means["maa"] == pytest.approx((90.5 + 90.885 + 221.51 / 3 + 255.41 / 4 + 63.174 + 52.965) / 6)
    assert means["bwt"] == pytest.approx((317.79 - 427.39) / 5)
    # 71.23, 52.97, 72.54 and -21.92 in two decimals.
    assert [round(means[name], 2) for name in ("mft", "mfn", "maa", "bwt")] == [71.23, 52.97, 72.54, -21.92]
