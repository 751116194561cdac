"""Records in the spellings that data sets use: read as they are meant, or refused with the record's name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from dmole_cli.data.card import load_card
from dmole_cli.data.loading import check_card, samples
from dmole_cli.errors import DmoleError

LETTER = "{question}\n{options}\nLetter?"


def load(folder: Path, kind: str, records: list, *, metric: str = "exact_match", prompt: str = "{question}", data=None):
    """The training samples of JSON records; the image of each is 48 x 32 pixels."""
    Image.new("RGB", (48, 32), (200, 30, 30)).save(folder / "a.png")
    text = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "data.jsonl").write_text(text, encoding="utf-8")
    table = "".join(f"{key} = {json.dumps(value)}\n" for key, value in {"train": "data.jsonl", **(data or {})}.items())
    head = f'format = "{kind}"\nmetric = "{metric}"\nprompt = {json.dumps(prompt)}\n'
    (folder / "card.toml").write_text(f"{head}[data]\n{table}", encoding="utf-8")
    return samples(load_card(folder / "card.toml"), "train")


def refusal(*args, **options) -> DmoleError:
    with pytest.raises(DmoleError) as caught:
        load(*args, **options)
    assert "data.jsonl, line" in caught.value.message and caught.value.hint
    return caught.value


def chosen(folder: Path, options: object, answer: object, **data: object):
    record = {"question": "Which?", "options": options, "answer": answer}
    data = {"choices": "options", **data}
    return load(folder, "multiple_choice", [record], metric="multiple_choice", prompt=LETTER, data=data)[0]


# --- multiple choice ---


@pytest.mark.parametrize(
    "answer",
    ["B", "b", "(B)", "(b)", "[B]", "B.", "B)", "b:", "B. dog", "(B) Dog.", "Option B", "The answer is (b).", "**B**",
     "dog", "Dog.", "2", 1, 1.0, ["B"]],
)  # fmt: skip
def test_every_spelling_of_a_letter_is_read(tmp_path, answer):
    row = chosen(tmp_path, ["cat", "dog"], answer)
    assert (row.answer, row.question) == ("B", "Which?\nA. cat\nB. dog\nLetter?")


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        ({"A": "cat", "B": "dog"}, "B"),
        ({"b": "dog", "a": "cat"}, "B"),
        ({"1": "cat", "2": "dog"}, 2),
        ({"0": "cat", "1": "dog"}, "1"),
        ({"A": "cat", "B": "dog", "C": None}, "dog"),
        ({"label": ["A", "B"], "text": ["cat", "dog"]}, "(B)"),
        ([{"label": "A", "text": "cat"}, {"label": "B", "text": "dog"}], "b"),
        (["A. cat", "B. dog"], "B. dog"),
        (["(a) cat", "(b) dog"], "dog"),
        (["A.cat", "B.dog"], "B"),
        (["1) cat", "2) dog"], "2"),
        ("['cat', 'dog']", "B"),
    ],
)
def test_options_have_one_label_however_they_are_written(tmp_path, options, answer):
    row = chosen(tmp_path, options, answer)
    assert (row.answer, row.details["options"]) == ("B", ["cat", "dog"])
    assert row.question == "Which?\nA. cat\nB. dog\nLetter?"


@pytest.mark.parametrize("options", [["A.D.", "B.C."], ["1.5", "2.5"], ["A cat", "B dog"], ["A. cat", "dog"]])
def test_a_text_that_only_begins_like_a_label_stays(tmp_path, options):
    assert chosen(tmp_path, options, options[1]).details["options"] == options


@pytest.mark.parametrize(
    ("options", "answer", "said"),
    [
        (["cat", "dog"], "1", "could be the options A or B"),
        (["cat", "dog"], 2, "none of the 2 options"),
        (["cat", "dog"], -1, "none of the 2 options"),
        (["cat", "dog"], True, "none of the 2 options"),
        (["cat", "dog"], "B. cat", "none of the 2 options"),
        (["cat", "dog"], ["A", "B"], "none of the 2 options"),
        (["cat", "dog"], float("nan"), "no value"),
        (["cat", "dog"], None, "no value"),
        (["B", "A"], "B", "could be the options A or B"),
        (["cat", "cat"], "cat", "could be the options A or B"),
        ([1, 2, 3], 2, "could be the options B or C"),
        (["cat", None], 0, "must be a list of texts"),
        ({"A": "cat", "C": "dog"}, "A", "not the first letters"),
        ("cat", 0, "must be a list of texts"),
    ],
)
def test_an_answer_that_is_no_option_or_could_be_two_is_refused(tmp_path, options, answer, said):
    record = {"question": "Which?", "options": options, "answer": answer}
    error = refusal(tmp_path, "multiple_choice", [record], metric="multiple_choice", data={"choices": "options"})
    assert said in error.message


def test_numbers_count_from_what_the_card_declares(tmp_path):
    found = [chosen(tmp_path, ["cat", "dog"], answer, first_index=1).answer for answer in (1, "1", 2, "2")]
    assert found == ["A", "A", "B", "B"]
    assert chosen(tmp_path, ["cat", "dog"], "1", first_index=0).answer == "B"
    with pytest.raises(DmoleError, match="first_index 7"):
        chosen(tmp_path, ["cat", "dog"], "1", first_index=7)


def test_numbers_that_count_from_both_contradict_each_other(tmp_path):
    records = [{"question": "Which?", "choices": ["cat", "dog"], "answer": answer} for answer in ("2", "0")]
    assert "the answer '0'" in refusal(tmp_path, "multiple_choice", records, metric="multiple_choice").message


# --- answers and images ---


@pytest.mark.parametrize("answer", [float("nan"), float("inf"), None, "", " ", [], ["red", ""], [None], True, {}])
def test_an_answer_without_a_value_is_refused_and_counted(tmp_path, answer):
    records = [{"question": "Colour?", "answer": "red"}, {"question": "Colour?", "answer": answer}]
    assert "line 2" in refusal(tmp_path, "question_answer", records).message
    report = check_card(load_card(tmp_path / "card.toml"))
    assert report.rows == {"train": 1} and not report.ok


@pytest.mark.parametrize("field", ["images", "img", "image_path"])
def test_no_field_that_names_images_is_left_out(tmp_path, field):
    record = {field: "a.png", "question": "Colour?", "answer": "red"}
    for data in ({}, {"image": field}):
        assert load(tmp_path, "question_answer", [record], data=data)[0].files == (tmp_path / "a.png",)
    assert (
        f"'{field}' names an image" in refusal(tmp_path, "question_answer", [record], data={"image": "other"}).message
    )


# --- boxes ---

BOX = [10, 8, 30, 20]  # in an image of 48 x 32


def boxed(folder: Path, box: object, form: str = "", **more: object):
    record = {"image": "a.png", "sent": "it", "bbox": box, "width": 48, "height": 32, **more}
    data = {"boxes": form} if form else {}
    [row] = load(folder, "grounding", [record], metric="grounding", data=data)
    return row


@pytest.mark.parametrize(
    ("box", "form"),
    [
        (BOX, ""),
        ([10, 8, 20, 12], "xywh"),
        ([20, 14, 20, 12], "cxcywh"),
        ([8, 10, 20, 30], "yxyx"),
        ([208.33, 250, 625, 625], "thousandths"),
        ([208.33, 250, 416.67, 375], "thousandths xywh"),
        ([0.20833, 0.25, 0.625, 0.625], "fractions"),
        ([0.20833, 0.25, 0.625, 0.625], "normalised"),
        ("[10, 8, 30, 20]", "pixels"),
    ],
)
def test_boxes_are_read_in_the_declared_form(tmp_path, box, form):
    row = boxed(tmp_path, box, form)
    assert row.details["box"] == pytest.approx(BOX, abs=0.01)
    assert row.answer in ("[[208, 250, 625, 625]]", "[0.21, 0.25, 0.62, 0.62]", "[0.21, 0.25, 0.62, 0.63]")
    assert row.images[0]().size == (48, 32)


@pytest.mark.parametrize(
    ("box", "form", "hint"),
    [
        ([200, 300, 600, 900], "", "thousandths"),
        ([0.2, 0.25, 0.6, 0.6], "", "fractions"),
        ([200, 300, 600, 900], "fractions", "thousandths"),
        ([0.2, 0.25, 0.6, 0.6], "thousandths", "fractions"),
        ([30, 8, 10, 20], "", "xywh"),
        ([10, 8, 10, 20], "", "xywh"),
        ([10, 8, 49, 20], "", ""),
        ([-5, 8, 20, 20], "", ""),
        ([30, 20, 30, 20], "xywh", ""),
        ([float("nan"), 8, 30, 20], "", ""),
        ([10, 8, float("inf"), 20], "", ""),
        ([10**400, 8, 30, 20], "", ""),
        (["10", 8, 30, 20], "", ""),
        ([10, 8, 30], "", ""),
        (None, "", ""),
    ],
)
def test_a_box_outside_of_its_frame_is_refused(tmp_path, box, form, hint):
    record = {"image": "a.png", "sent": "it", "bbox": box, "width": 48, "height": 32}
    error = refusal(tmp_path, "grounding", [record], metric="grounding", data={"boxes": form} if form else {})
    assert hint in error.hint and "line 1" in error.message


@pytest.mark.parametrize("side", [0, -1, float("nan"), float("inf"), "48", None])
def test_a_frame_without_a_size_is_refused(tmp_path, side):
    record = {"image": "a.png", "sent": "it", "bbox": BOX, "width": side, "height": 32}
    assert "'width'" in refusal(tmp_path, "grounding", [record], metric="grounding").message


def test_an_image_of_other_proportions_than_its_frame_is_refused_when_it_is_opened(tmp_path):
    assert boxed(tmp_path, BOX, width=96, height=64).images[0]().size == (48, 32)  # the same place at another scale
    row = boxed(tmp_path, BOX, width=32, height=48)
    with pytest.raises(DmoleError, match="48 x 32 pixels, but its box is in 32 x 48"):
        row.images[0]()
    report = check_card(load_card(tmp_path / "card.toml"))
    assert [problem.kind for problem in report.problems] == ["image"]


def test_an_unknown_form_of_boxes_is_refused(tmp_path):
    with pytest.raises(DmoleError, match=r"invalid data\.boxes 'inches'"):
        boxed(tmp_path, BOX, "inches")
