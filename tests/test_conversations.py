"""Conversations in the spellings of common training tools, and records whose images or markers cannot be used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dmole_cli.data.card import load_card
from dmole_cli.data.guessing import guess_format
from dmole_cli.data.loading import check_card, samples
from dmole_cli.data.markers import with_markers_of
from dmole_cli.errors import DmoleError

QWEN = "<|vision_start|><|image_pad|><|vision_end|>"
A, B = {"image": "a.png"}, {"images": ["a.png", "b.png"]}


def card(folder: Path, *records: object, kind: str = "llava", prompt: str = "{question}", data: str = "") -> Path:
    (folder / "rows.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    path = folder / "mine.toml"
    path.write_text(
        f'format = "{kind}"\nprompt = "{prompt}"\nmetric = "exact_match"\n[data]\ntrain = "rows.jsonl"\n{data}\n'
    )
    return path


def rows(path: Path) -> list[tuple[str, str, list[str]]]:
    found = samples(load_card(path), "train")
    return [(row.question, row.answer, [file.name for file in row.files]) for row in found]


def refused(path: Path, part: str, *, kind: str = "record") -> None:
    """The stages refuse the first record by name, and the check counts it."""
    with pytest.raises(DmoleError) as caught:
        samples(load_card(path), "train")
    assert "line 1" in caught.value.message and part in caught.value.message and caught.value.hint
    problems = {problem.kind: problem for problem in check_card(load_card(path)).problems}
    assert problems[kind].count == 1 and "line 1" in problems[kind].first[0]


def chat(content: object, answer: object = "red", **more: object) -> dict:
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": answer}], **more}


TEXT = {"type": "text", "text": "Colour?"}
SPELLINGS = {
    "llava": {"conversations": [{"from": "human", "value": "<image>\nColour?"}, {"from": "gpt", "value": "red"}], **A},
    "llama-factory": chat("<image>Colour?", images=["a.png"]),
    "datasets": chat("<image>Colour?", images=[{"path": "a.png", "bytes": None}]),
    "a text": chat("<image>Colour?", images="a.png"),
    "img": chat("Colour?", img="a.png"),
    "image_path": chat("Colour?", image_path="a.png"),
    "pictures": chat("Colour?", pictures=["a.png"]),
    "twice": chat("Colour?", images=["a.png"], image="pictures/a.png"),
    "file_name": chat("Colour?", file_name="a.png"),
    "no video": chat("<image>Colour?", images=["a.png"], videos=[], audio=None),
    "qwen": chat([{"type": "image", "image": "file:///tmp/a.png"}, TEXT], [{"type": "text", "text": "red"}]),
    "qwen without types": chat([{"image": "a.png"}, {"text": "Colour?"}]),
    "openai": chat([{"type": "image_url", "image_url": {"url": "a.png"}}, TEXT]),
    "trl": chat([{"type": "image", "text": None}, {**TEXT, "image": None}], images=["a.png"]),
    "index": chat([{"type": "image", "index": 0}, TEXT], images=["a.png"]),
    "of a turn": {
        "messages": [{"role": "user", "content": "Colour?", "images": ["a.png"]}, chat("", "red")["messages"][1]]
    },
    "qwen-vl": chat("<img>pictures/a.png</img>\nColour?"),
    "ms-swift": {"query": "<image>Colour?", "response": "red", "images": ["a.png"]},
    "alpaca": {"instruction": "<image>", "input": "Colour?", "output": "red", "images": ["a.png"]},
    "cauldron": {"texts": [{"user": "Colour?", "assistant": "red", "source": "x"}], "images": ["a.png"]},
    "the model's own": chat(f"{QWEN}Colour?", **A),
    "capitals": {"conversation": [{"role": "USER", "content": "Colour?"}, {"role": "Model", "content": "red"}], **A},
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_each_spelling_is_the_same_sample(tmp_path, name):
    ((question, answer, files),) = rows(card(tmp_path, SPELLINGS[name]))
    assert (question.strip(), answer, files) == ("Colour?", "red", ["a.png"])
    if name not in ("ms-swift", "alpaca"):
        assert guess_format(tmp_path / "rows.jsonl")[0] == "llava"


UNUSABLE = {
    "no image": (chat("<image>Colour?"), "1 image marker(s) (<image>), but it names 0"),
    "null": (chat("<image>Colour?", image=None), "but it names 0 image(s)"),
    "empty list": (chat("<image>Colour?", images=[]), "but it names 0 image(s)"),
    "two markers": (chat("<image> or <image>?", **A), "2 image marker(s)"),
    "two images": (chat("<image>Colour?", **B), "1 image marker(s)"),
    "the model's own": (chat(f"{QWEN}Colour?"), "but it names 0 image(s)"),
    "part without image": (chat([{"type": "image"}, TEXT]), "but it names 0 image(s)"),
    "second turn": (
        {"conversations": chat("<image>Colour?")["messages"] + chat("<image>?")["messages"], **A},
        "2 image marker(s)",
    ),
    "in the answer": (chat("Colour?", "It is <image>.", **A), "an answer has an image marker"),
    "order": (chat("<image 2> or <image 1>?", **B), "not in order"),
    "two fields": (chat("Colour?", **A, images=["b.png"]), "name different images"),
    "turns and fields": (chat([{"type": "image", "image": "b.png"}, TEXT], **A), "other images"),
    "address": (chat([{"type": "image_url", "image_url": {"url": "https://x.org/a.png"}}, TEXT]), "https://x.org"),
    "address field": (chat("Colour?", image_url="https://x.org/a.png"), "https://x.org"),
    "embedded": (chat("Colour?", image="data:image/png;base64,AAAA"), "not the path of a file"),
    "bytes": (chat("Colour?", images=[{"bytes": "AAAA"}]), "contains the bytes of an image"),
    "path in a text": (chat("<img>b.png</img>Colour?", **A), "other images"),
    "no path in a text": (chat("<img></img>Colour?", **A), "'<img>' must be"),
    "video part": (chat([{"type": "video", "video": "a.mp4"}, TEXT]), "'video'"),
    "videos": (chat("Colour?", videos=["a.mp4"]), "'videos'"),
    "audio": (chat("Colour?", audio="a.mp3", **A), "'audio'"),
    "video marker": (chat("<video>Colour?"), "'<video>'"),
    "boxes": (
        chat("Find <ref-object>", "<bbox>", **A, objects={"ref": ["it"], "bbox": [[1, 2, 3, 4]]}),
        "'<ref-object>'",
    ),
    "id alone": (chat("Colour?", image_id=7), "'image_id'"),
    "number": (chat("Colour?", image=0), "'image' must be"),
    "false": (chat("Colour?", image=False), "'image' must be"),
    "object": (chat("Colour?", image={}), "'image' must be"),
    "null in a list": (chat("Colour?", image=["a.png", None]), "'image' must be"),
    "list in a list": (chat("Colour?", images=[["a.png"]]), "'images' must be"),
    "null character": (chat("Colour?", image="a\0.png"), "null character"),
    "tool": ({"messages": [chat("Colour?")["messages"][0], {"role": "tool", "content": "red"}], **A}, "'tool'"),
    "two lists": (
        chat("Colour?", conversations=chat("Shape?")["messages"]),
        "turns in 'conversations' and in 'messages'",
    ),
    "null turn": ({"messages": [None]}, "a turn must be"),
    "number as text": (chat(7, **A), "a turn must be"),
    "unknown part": (chat([{"type": "table", "rows": []}, TEXT]), "not 'table'"),
    "history": ({"query": "Colour?", "response": "red", "history": ["red"]}, "'history' must be"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_an_unusable_record_is_counted_and_named(tmp_path, name):
    record, part = UNUSABLE[name]
    refused(card(tmp_path, record, chat("Shape?")), part)


def test_images_stand_where_the_text_says(tmp_path):
    records = [
        chat("First <image> then <image>: which?", **B),
        chat("<image>\n<image> Which?\n", **B),
        chat("Is it?\n<image>", **A),
    ]
    questions = [question for question, _, _ in rows(card(tmp_path, *records))]
    assert questions == ["First <image> then <image>: which?", "Which?", "Is it?\n<image>"]


def test_a_turn_has_the_images_up_to_it(tmp_path):
    turns = chat("<image>Colour?")["messages"] + chat("And <image>?", "blue")["messages"]
    after = chat("Colour?")["messages"] + chat("And?", "blue")["messages"]
    path = card(tmp_path, {"messages": turns, **B, "system": "Be brief."}, {"messages": after, **B})
    assert rows(path) == [
        ("Be brief.\nColour?", "red", ["a.png"]),
        ("<image>Be brief.\nUser: Colour?\nAssistant: red\nUser: And <image>?", "blue", ["a.png", "b.png"]),
        ("Colour?", "red", ["a.png", "b.png"]),
        ("User: Colour?\nAssistant: red\nUser: And?", "blue", ["a.png", "b.png"]),
    ]
    swift = {
        "query": "And <image>?",
        "response": "blue",
        "history": [["<image>Colour?", "red"]],
        **B,
        "system": "Be brief.",
    }
    assert rows(card(tmp_path, swift)) == rows(card(tmp_path, {"messages": turns, **B, "system": "Be brief."}))
    assert guess_format(tmp_path / "rows.jsonl")[0] == "llava"


BOX = {"sent": "it", "bbox": [1, 1, 2, 2], "width": 5, "height": 4}
OTHERS = {
    "question_answer": ("question", {"question": "<image>\nColour?", "answer": "red"}),
    "vqa": ("question", {"question": "<image>\nColour?", "answers": ["red"]}),
    "multiple_choice": ("question", {"question": "<image>\nColour?", "choices": ["red", "blue"], "answer": 0}),
    "coin": ("text", {"question_id": 1, "text": "<image>\nColour?", "answer": "red"}),
    "grounding": ("sent", {**BOX, "sent": "<image>\nColour?"}),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_markers_and_images_are_counted_in_every_format(tmp_path, kind):
    field, record = OTHERS[kind]
    for image in (A, {"images": ["a.png"]}, {"img": "a.png"}, {"image_path": "a.png"}):
        assert [row[::2] for row in rows(card(tmp_path, record | image, kind=kind))] == [("Colour?", ["a.png"])]
    good = record | {field: "Shape?"}
    refused(card(tmp_path, record, good, kind=kind), "1 image marker(s)")
    refused(card(tmp_path, record | {field: "<image> or <image>?"} | A, good, kind=kind), "2 image marker(s)")
    refused(card(tmp_path, record | {field: "<image>"} | A, good, kind=kind), "no text besides image markers")
    assert rows(card(tmp_path, record | {field: "Is <image> red?"} | A, kind=kind))[0][0] == "Is <image> red?"
    fields = {"image": (7, "'image' must be"), "img": (False, "'img' must be"), "videos": (["a.mp4"], "'videos'")}
    for name, (wrong, part) in fields.items():
        refused(card(tmp_path, good | {name: wrong}, good, kind=kind), part)
    if kind in ("question_answer", "vqa", "coin"):
        answer = {"answers": ["<image>"]} if kind == "vqa" else {"answer": "<image>"}
        refused(card(tmp_path, good | answer, good, kind=kind), "its answer has an image marker")


def test_a_field_that_the_card_maps_is_the_only_one(tmp_path):
    record = {"question": "Colour?", "answer": "red", "img": "a.png", "image": "b.png"}
    path = card(tmp_path, record, kind="question_answer", data='image = "img"')
    assert rows(path)[0][2] == ["a.png"]
    refused(
        card(tmp_path, record | {"img": None}, kind="question_answer", data='image = "img"'), "'image' names an image"
    )


def test_a_marker_in_the_prompt_counts(tmp_path):
    assert (
        rows(card(tmp_path, chat("<image>Colour?", **A), prompt="Look: <image> {question}"))[0][0]
        == "Look: <image> Colour?"
    )
    refused(card(tmp_path, chat("Colour?"), prompt="<image> {question}"), "1 image marker(s)")


def test_captions_need_names_and_ids_of_the_right_type(tmp_path):
    images = [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": 7}, {"id": [3], "file_name": "b.png"}, None]
    captions = [{"image_id": 1, "caption": "a"}, {"image_id": {}, "caption": "b"}, {"image_id": 1, "caption": 3.5}]
    path = card(tmp_path, kind="coco_captions")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"images": images, "annotations": captions}))
    problems = {problem.kind: problem for problem in check_card(load_card(path)).problems}
    assert problems["record"].count == 4 and "images, record 2" in " ".join(problems["record"].first)


PROBLEM = {"question": "What?", "choices": ["a", "b"], "answer": 1, "image": None}


@pytest.mark.parametrize(
    ("problem", "part"),
    [
        (None, "must be an object"),
        (PROBLEM, "its split is None"),
        ({**PROBLEM, "split": "trian"}, "its split is 'trian'"),
        ({**PROBLEM, "split": 7}, "its split is 7"),
        ({**PROBLEM, "split": "train", "image": 3}, "'image' must be"),
        ({**PROBLEM, "split": "train", "hint": ["x"]}, "'hint' must be"),
    ],
)
def test_a_problem_of_scienceqa_is_never_lost(tmp_path, problem, part):
    problems = {"1": {**PROBLEM, "split": "train"}, "2": {**PROBLEM, "split": "minival"}, "3": problem}
    path = card(tmp_path, kind="scienceqa", data='problems = "p.json"\nvalidation = ""\ntest = ""').with_name(
        "mine.toml"
    )
    path.write_text(path.read_text().replace('train = "rows.jsonl"', 'train = "train"'))
    (tmp_path / "p.json").write_text(json.dumps(problems))
    with pytest.raises(DmoleError, match="problem 3") as caught:
        samples(load_card(path), "train")
    assert part in caught.value.message
    report = check_card(load_card(path))
    assert [(p.split, p.kind, p.count) for p in report.problems if p.serious] == [("train", "record", 1)]
    assert report.rows == {"train": 1} and "problem 3" in report.problems[0].first[0]


def test_a_card_without_training_data_is_named(tmp_path):
    path = card(tmp_path, chat("Colour?"))
    path.write_text(path.read_text().replace('train = "rows.jsonl"', 'train = ""\ntest = "rows.jsonl"'))
    with pytest.raises(DmoleError, match="mine has no training rows"):
        samples(load_card(path), "train")
    report = check_card(load_card(path))
    assert not report.ok and report.problems[0].kind == "no_training" and "`train`" in report.problems[0].first[0]
    assert report.of_unseen().ok and report.of_unseen().problems[0].kind == "test_only"


def test_a_shortened_question_keeps_the_order_of_its_images():
    whole = "One <image> two <image> three"
    assert with_markers_of(whole, "One  two  three") == whole
    assert with_markers_of(whole, "wo  three") == "<image>wo <image> three"
    assert with_markers_of(whole, "ree") == "<image><image>ree"
    assert with_markers_of("plain", "in") == "in"
