"""Annotation files: LLaVA records as JSON lines or an array, errors of bad input, and large files."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import tiny
from PIL import Image

from dmole_cli.artifacts.files import digest_of_file
from dmole_cli.data.card import load_card
from dmole_cli.data.digests import data_digest
from dmole_cli.data.formats import _arrow, _json
from dmole_cli.data.loading import check_card, samples
from dmole_cli.errors import DmoleError

sys.path.insert(0, str(tiny.ROOT))
from pipelines.bench import rows as bench


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
    two = record(question="<image><image>\nWhat is it?", image=["red.png", "red.png"])
    write_lines(tmp_path / "train.jsonl", two, text_only)
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


def test_braces_in_a_question_stay(tmp_path):
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
        (
            {"image": ["red.png"] * 2, "conversations": record()["conversations"] * 2, "references": ["red"]},
            "a record of one question",
        ),
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


@pytest.mark.parametrize(("content", "part"), [(None, "missing image"), (b"not an image", "cannot open the image")])
def test_a_bad_image_is_named_when_it_is_opened(tmp_path, content, part):
    write_lines(tmp_path / "train.jsonl", record(), record(image="bad.png"))
    if content is not None:
        (tmp_path / "bad.png").write_bytes(content)
    row = samples(load_card(write_card(tmp_path)), "train")[1]
    with pytest.raises(DmoleError) as caught:
        row.images[0]()
    for piece in (part, "bad.png", "train.jsonl, line 2"):
        assert piece in caught.value.message


def test_a_truncated_image_is_an_error_too(tmp_path):
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


# ------------------------------------------------------------------------------------------------ several turns


def test_each_answer_of_a_conversation_is_a_sample_with_the_turns_before_it(tmp_path):
    turns = [
        {"from": "system", "value": "Be brief."},
        *record()["conversations"],
        {"from": "human", "value": "And how large?"},
        {"from": "gpt", "value": "small"},
    ]
    write_lines(tmp_path / "train.jsonl", {"image": "red.png", "conversations": turns}, record())
    first, second, third = samples(load_card(write_card(tmp_path)), "train")
    assert first.question == "Be brief.\nWhat is it? Answer in a few words."
    assert second.question == (
        "Be brief.\nUser: What is it?\nAssistant: a red square\nUser: And how large? Answer in a few words."
    )
    assert [row.answer for row in (first, second, third)] == ["a red square", "small", "a red square"]
    assert [row.sample_id for row in (first, second, third)] == ["train-00000", "train-00001", "train-00002"]
    assert first.files == second.files == third.files


def test_roles_and_contents_may_have_the_names_of_chats(tmp_path):
    turns = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "a can"}]
    write_lines(tmp_path / "train.jsonl", {"conversations": turns})
    (row,) = samples(load_card(write_card(tmp_path)), "train")
    assert (row.question, row.answer, row.images) == ("What? Answer in a few words.", "a can", ())


def test_a_prompt_names_any_text_of_a_record_and_braces_that_name_none_stay(tmp_path):
    write_lines(tmp_path / "train.jsonl", record(question="What is {place}?", place="Rome {question}"))
    card = write_card(tmp_path)
    card.write_text(card.read_text().replace("{question} Answer in a few words.", "At {place}: {question} {other}"))
    (row,) = samples(load_card(card), "train")
    assert row.question == "At Rome {question}: What is {place}? {other}"


# ------------------------------------------------------------------------------------------------ long files


@pytest.mark.parametrize("piece", [1, 3, 64, 1 << 20])
def test_json_read_in_pieces_is_what_json_reads(tmp_path, monkeypatch, piece):
    monkeypatch.setattr(_json, "PIECE", piece)
    value = {"a": [1, -2.5e3, True, None, 'x\u2028\\"y', {"b": [[], {}]}], "c": {"d": {"e": "é"}, "f": 7}, "g": "text"}
    for indent in (None, 2):
        path = tmp_path / "value.json"
        path.write_text(json.dumps(value, indent=indent, ensure_ascii=False), encoding="utf-8")
        assert dict(_json.entries(path)) == value
        found = [(m.group, m.key, m.value) for m in _json.members(path)]
        assert found == [
            *(("a", "", v) for v in value["a"]),
            ("c", "d", {"e": "é"}),
            ("c", "f", 7),
            ("g", "", "text"),
        ]
        path.write_text(json.dumps(value["a"], indent=indent), encoding="utf-8")
        assert [v for _, v in _json.records(path)] == value["a"]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("[1, 2", "line 1: not JSON"),
        ('[\n"a",\n"b', "line 3: not JSON (Unterminated string"),
        ("[1 2]", "Expecting ',' or ']'"),
        ("[1]\n[2]", "line 2: not JSON (Extra data)"),
        ("[1, nul]", "not JSON (Expecting value)"),
        ('[1, "\\uZZ"]', "not JSON (Invalid"),
    ],
)
def test_an_array_that_is_not_json_is_named_with_its_line(tmp_path, text, part):
    path = tmp_path / "wrong.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DmoleError) as caught:
        list(_json.records(path))
    assert part in caught.value.message and str(path) in caught.value.message


@pytest.mark.parametrize("text", ['{"a" 1}', '{"a": 1,}', "7", "{1: 2}", ""])
def test_an_invalid_document_is_named(tmp_path, text):
    path = tmp_path / "wrong.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DmoleError, match=r"wrong\.json"):
        list(_json.members(path))


def test_a_long_file_is_converted_once_and_again_when_it_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("DMOLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(_arrow, "IN_MEMORY", 100)
    monkeypatch.setattr(_arrow, "BLOCK", 4)
    card = write_card(tmp_path)
    write_lines(tmp_path / "train.jsonl", *(record(answer=f"answer {n}") for n in range(11)))
    first = samples(load_card(card), "train")
    (made,) = (tmp_path / "cache" / "rows").glob("*.arrow")
    state = made.stat().st_mtime_ns
    rows = samples(load_card(card), "train")
    assert [row.answer for row in rows] == [f"answer {n}" for n in range(11)] == [row.answer for row in first]
    assert [rows[n].answer for n in (10, 0, -1, 5)] == ["answer 10", "answer 0", "answer 10", "answer 5"]
    assert [row.sample_id for row in rows[3:9:2]] == ["train-00003", "train-00005", "train-00007"]
    with pytest.raises(IndexError):
        rows[11]
    assert made.stat().st_mtime_ns == state and len(list(made.parent.glob("*.arrow"))) == 1
    write_lines(tmp_path / "train.jsonl", *(record(answer=f"other {n}") for n in range(11)))
    assert samples(load_card(card), "train")[0].answer == "other 0"
    card.write_text(card.read_text().replace("in a few words", "in one word"))
    assert samples(load_card(card), "train")[0].question.endswith("in one word.")
    assert len(list(made.parent.glob("*.arrow"))) == 3


def test_a_damaged_cache_of_rows_is_written_again(tmp_path, monkeypatch):
    monkeypatch.setenv("DMOLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(_arrow, "IN_MEMORY", 100)
    card = write_card(tmp_path)
    write_lines(tmp_path / "train.jsonl", *(record(answer=f"answer {n}") for n in range(11)))
    samples(load_card(card), "train")
    (made,) = (tmp_path / "cache" / "rows").glob("*.arrow")
    whole = made.read_bytes()
    made.write_bytes(whole.replace(b"answer 3", b"answer 4"))
    assert [row.answer for row in samples(load_card(card), "train")] == [f"answer {n}" for n in range(11)]
    assert made.read_bytes() == whole
    made.write_bytes(whole[:50])
    assert len(samples(load_card(card), "train")) == 11


def test_the_digest_of_a_cached_split_holds_until_rows_or_images_change(tmp_path, monkeypatch):
    monkeypatch.setenv("DMOLE_CACHE", str(tmp_path / "cache"))
    card = write_card(tmp_path)
    card.write_text(card.read_text().replace('validation = "validation.jsonl"', "held_out = 0.3"))
    write_lines(tmp_path / "train.jsonl", *(record(answer=f"a {n}", image=f"{n % 20}.png") for n in range(40)))
    for number in range(20):
        Image.new("RGB", (9, 9), (9 * number, 0, 0)).save(tmp_path / f"{number}.png")

    class Counted(dict):
        def __missing__(self, path):
            read.append(path)
            return digest_of_file(path) if path.exists() else "missing"

    def digest(split="train"):
        return data_digest(samples(load_card(card), split), Counted())

    read = []
    plain = [digest(split) for split in ("train", "validation")]  # of few rows nothing is cached
    monkeypatch.setattr(_arrow, "IN_MEMORY", 100)
    assert [digest(split) for split in ("train", "validation")] == plain and plain[0] != plain[1]
    read.clear()
    assert [digest(split) for split in ("train", "validation")] == plain and not read
    [*stored] = (tmp_path / "cache" / "digests").iterdir()
    assert len(stored) == 2
    for file in stored:
        file.write_text("0" * 64 + " damaged")
    assert digest() == plain[0] and read
    Image.new("RGB", (9, 9), (1, 2, 3)).save(tmp_path / "0.png")
    changed = digest(), digest("validation")
    assert changed != tuple(plain)
    shutil.rmtree(tmp_path / "cache" / "digests")
    assert (digest(), digest("validation")) == changed
    (tmp_path / "1.png").unlink()
    assert (digest(), digest("validation")) != changed


def test_going_through_all_samples_gives_those_at_their_indices(tmp_path, monkeypatch):
    monkeypatch.setenv("DMOLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(_arrow, "IN_MEMORY", 100)
    monkeypatch.setattr(_arrow, "BLOCK", 4)
    card = write_card(tmp_path)
    card.write_text(card.read_text().replace('validation = "validation.jsonl"', "held_out = 0.3"))
    write_lines(tmp_path / "train.jsonl", *(record(f"What is {n}?", image=f"{n % 15}.png") for n in range(31)))
    splits = [samples(load_card(card), split) for split in ("train", "validation")]
    for rows in splits:
        assert [str(row) for row in rows] == [str(rows[index]) for index in range(len(rows))]
    assert sum(map(len, splits)) == 31 and all(splits)


def test_an_invalid_record_leaves_nothing_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DMOLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(_arrow, "IN_MEMORY", 0)
    write_lines(tmp_path / "train.jsonl", record(), record(answer=""))
    for _ in range(2):
        assert "line 2: the answer is empty" in failure(tmp_path).message
    assert list((tmp_path / "cache" / "rows").iterdir()) == []


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("in the way")
    monkeypatch.setenv("DMOLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(_arrow, "IN_MEMORY", 0)
    write_lines(tmp_path / "train.jsonl", record())
    error = failure(tmp_path)
    assert "cannot write" in error.message and "DMOLE_CACHE" in error.hint


def test_memory_does_not_grow_with_the_rows():
    few, many = (next(bench.measured(count, times=1))["peak"] for count in (1_000, 48_000))
    assert many - few < 15 * 2**20
    # The measurement would show it: the same number of samples in a list takes more.
    (in_memory,) = bench.measured(48_000, times=1, how="--keep")
    assert in_memory["peak"] - few > 30 * 2**20


# ------------------------------------------------------------------------------------------------ what a card is like


def test_a_card_like_another_says_what_differs(tmp_path):
    base = write_card(tmp_path, extra="[recipe]\nepochs = 3\nbatch_size = 5\n")
    write_lines(tmp_path / "other.jsonl", record(answer="four"))
    path = tmp_path / "like.toml"
    path.write_text(f'like = "{base}"\ntitle = "other"\n[recipe]\nepochs = 1\n[data]\ntrain = "other.jsonl"\n')
    card = load_card(path)
    assert (card.name, card.title, card.metric) == ("like", "other", "exact_match")
    assert (card.recipe.epochs, card.recipe.batch_size) == (1, 5)
    assert card.data["test"] == "test.jsonl" and samples(card, "train")[0].answer == "four"


@pytest.mark.parametrize(
    ("like", "part"),
    [('"like.toml"', "circular `like`"), ('"nobody"', "unknown task"), ("3", "like is 3; expected text")],
)
def test_an_invalid_like_is_refused(tmp_path, monkeypatch, like, part):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "like.toml").write_text(f"like = {like}\n")
    with pytest.raises(DmoleError, match=part):
        load_card("like.toml")
