"""Users' own files: LLaVA records as JSON lines or an array, and what each kind of bad input is answered with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from dmole_cli.errors import DmoleError
from dmole_cli.tasks import check_card, load_card, samples


def record(question="<image>\nWhat is it?", answer="a red square", **more):
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"image": "red.png", "conversations": turns, **more}


def write_card(folder: Path, *, train: str = "train.jsonl", extra: str = "") -> Path:
    Image.new("RGB", (5, 4), "red").save(folder / "red.png")
    path = folder / "mine.toml"
    path.write_text(
        'format = "llava"\nprompt = "{question} Answer in a few words."\nmetric = "exact_match"\n'
        f'{extra}\n[data]\ntrain = "{train}"\nvalidation = "validation.jsonl"\ntest = "test.jsonl"\n'
    )
    return path


def write_lines(path: Path, *records) -> None:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in records), encoding="utf-8")


def failure(folder: Path) -> DmoleError:
    with pytest.raises(DmoleError) as caught:
        samples(load_card(write_card(folder)), "train")
    return caught.value


def test_json_lines_become_samples(tmp_path):
    write_lines(tmp_path / "train.jsonl", record(references=["a red square", "red"], options=["red", "blue"]))
    (row,) = samples(load_card(write_card(tmp_path)), "train")
    assert row.question == "What is it? Answer in a few words."
    assert row.answer == "a red square"
    assert row.references == ("a red square", "red")
    assert row.details == {"options": ["red", "blue"]}
    assert row.sources == ("file:red.png",)
    assert row.images[0]().size == (5, 4)


def test_an_array_of_records_reads_the_same(tmp_path):
    (tmp_path / "train.json").write_text(json.dumps([record(), record()], indent=1))
    rows = samples(load_card(write_card(tmp_path, train="train.json")), "train")
    assert [row.answer for row in rows] == ["a red square"] * 2


def test_several_images_and_none(tmp_path):
    text_only = record(question="Two plus two?", answer="four")
    del text_only["image"]
    write_lines(tmp_path / "train.jsonl", record(image=["red.png", "red.png"]), text_only)
    rows = samples(load_card(write_card(tmp_path)), "train")
    assert [len(row.images) for row in rows] == [2, 0]


def test_paths_start_at_data_root_when_it_is_given(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    write_lines(data / "train.jsonl", record())
    Image.new("RGB", (9, 9)).save(data / "red.png")
    (row,) = samples(load_card(write_card(tmp_path)), "train", data_root=data)
    assert row.images[0]().size == (9, 9)


def test_sizes_cap_the_rows(tmp_path):
    write_lines(tmp_path / "train.jsonl", record(), record(), record())
    card = load_card(write_card(tmp_path, extra="[sizes]\ntrain = 2\n"))
    assert len(samples(card, "train")) == 2


def test_braces_in_a_question_are_kept(tmp_path):
    write_lines(tmp_path / "train.jsonl", record(question="What is {x}?"))
    (row,) = samples(load_card(write_card(tmp_path)), "train")
    assert row.question.startswith("What is {x}?")


def test_a_line_separator_inside_a_text_does_not_break_the_line(tmp_path):
    line = json.dumps(record(answer="red\u2028square"), ensure_ascii=False)
    (tmp_path / "train.jsonl").write_text(line + "\n", encoding="utf-8")
    (row,) = samples(load_card(write_card(tmp_path)), "train")
    assert row.answer == "red\u2028square"


def test_a_missing_file_is_named(tmp_path):
    assert "train.jsonl" in failure(tmp_path).message


def test_an_unreadable_line_is_named(tmp_path):
    (tmp_path / "train.jsonl").write_text(json.dumps(record()) + '\n\n{"image": \n')
    assert "train.jsonl, line 3: not JSON" in failure(tmp_path).message


def test_an_unreadable_array_is_named(tmp_path):
    (tmp_path / "train.jsonl").write_text(f"[\n{json.dumps(record())},\n]")
    assert "train.jsonl, line 3: not JSON" in failure(tmp_path).message


def test_a_file_that_is_not_text_is_named(tmp_path):
    (tmp_path / "train.jsonl").write_bytes(b"\xff\xfe\x00{")
    assert "cannot read the annotation file" in failure(tmp_path).message


@pytest.mark.parametrize(
    ("entry", "part"),
    [
        ({"image": "red.png"}, "no conversations"),
        ([1, 2], "no conversations"),
        ({"conversations": []}, "no conversations"),
        (record(answer="  "), "the answer is empty"),
        (record(question="<image>\n"), "the question is empty"),
        ({"conversations": [{"from": "human", "value": "What?"}]}, "the answer is empty"),
        ({"conversations": record()["conversations"][::-1]}, "must alternate, a question first"),
        ({"conversations": record()["conversations"] + record()["conversations"][1:]}, "must alternate"),
        ({"conversations": record()["conversations"] + record()["conversations"][:1]}, "the answer is empty"),
        ({"conversations": ["What?"]}, "a turn must be a text of 'human' or of 'gpt'"),
        ({"conversations": record()["conversations"] * 2, "references": ["red"]}, "a record of one question"),
        (record(answer="\ud800"), "not Unicode"),
        (record(image=3), "'image' must be"),
        (record(references="red"), "'references' must be"),
    ],
)
def test_an_unusable_record_is_named_with_its_line(tmp_path, entry, part):
    write_lines(tmp_path / "train.jsonl", record(), entry)
    error = failure(tmp_path)
    assert "train.jsonl, line 2: " in error.message
    assert part in error.message
    assert error.hint


@pytest.mark.parametrize(
    ("content", "part"), [(None, "missing picture"), (b"not a picture", "cannot open the picture")]
)
def test_a_bad_picture_is_named_when_it_is_opened(tmp_path, content, part):
    write_lines(tmp_path / "train.jsonl", record(), record(image="bad.png"))
    if content is not None:
        (tmp_path / "bad.png").write_bytes(content)
    row = samples(load_card(write_card(tmp_path)), "train")[1]
    with pytest.raises(DmoleError) as caught:
        row.images[0]()
    for piece in (part, "bad.png", "train.jsonl, line 2"):
        assert piece in caught.value.message


def test_a_truncated_picture_is_an_error_too(tmp_path):
    card = write_card(tmp_path)
    Image.effect_noise((64, 64), 90).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:900])
    write_lines(tmp_path / "train.jsonl", record(image="cut.png"))
    with pytest.raises(DmoleError, match=r"cut\.png"):
        samples(load_card(card), "train")[0].images[0]()


def test_the_check_reports_counts_and_first_offenders(tmp_path):
    write_lines(tmp_path / "train.jsonl", *(record(image=f"gone{n}.png") for n in range(5)), record(answer="a b c d"))
    write_lines(tmp_path / "validation.jsonl", record())
    card = load_card(write_card(tmp_path, extra="[generation]\nmax_new_tokens = 3\n"))
    report = check_card(card, images=0)
    found = {(problem.split, problem.kind): problem for problem in report.problems}
    assert report.rows == {"train": 6, "validation": 1}
    assert found["train", "image"].count == 5
    assert len(found["train", "image"].first) == 3
    assert "gone0.png" in found["train", "image"].first[0]
    assert found["train", "length"].count == 1
    assert found["train+validation", "sources"].first == ("file:red.png",)
    assert "test.jsonl" in found["test", "split"].first[0]
    assert "and 2 more" in str(found["train", "image"])
    assert not report.ok
