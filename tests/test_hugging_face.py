"""Data sets of the `datasets` library: local Arrow, parquet and image folders, columns mapped by the card."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
from PIL import Image

from dmole_cli.data.card import load_card
from dmole_cli.data.loading import check_card, samples
from dmole_cli.errors import DmoleError

datasets = pytest.importorskip("datasets")

COLOURS = ("red", "green", "blue", "yellow")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("sets")


def images(count: int, *, first: int = 0) -> list[Image.Image]:
    return [Image.new("RGB", (20 + first + i, 20), COLOURS[i % 4]) for i in range(count)]


def rows(count: int, *, first: int = 0) -> datasets.Dataset:
    kinds = {"picture": datasets.Image(), "q": datasets.Value("string"), "a": datasets.Value("string")}
    kinds |= {"level": datasets.Value("int32"), "others": datasets.List(datasets.Value("string"))}
    values = {
        "picture": images(count, first=first),
        "q": [f"Colour {i}?" for i in range(count)],
        "a": [COLOURS[i % 4] for i in range(count)],
        "level": list(range(count)),
        "others": [[COLOURS[i % 4], "a colour"] for i in range(count)],
    }
    return datasets.Dataset.from_dict(values, features=datasets.Features(kinds))


def card(path: Path, data: dict[str, object], *, metric: str = "exact_match", prompt: str = "{question}") -> Path:
    table = "".join(f"{key} = {json.dumps(value)}\n" for key, value in data.items())
    path.write_text(
        f'format = "hugging_face"\nmetric = "{metric}"\nprompt = {json.dumps(prompt)}\n[data]\n{table}',
        encoding="utf-8",
    )
    return path


MAP = {"images": "picture", "question": "q", "answer": "a"}


@pytest.fixture(scope="module")
def saved(folder) -> Path:
    parts = {"train": rows(12), "test": rows(4, first=12)}
    datasets.DatasetDict(parts).save_to_disk(str(folder / "saved"))
    return folder


def test_columns_become_samples(saved):
    path = card(
        saved / "a.toml",
        {"dataset": "saved", **MAP, "details": "level", "references": "others"},
        prompt="{q} {question}!",
    )
    row = samples(load_card(path), "test")[1]
    assert (row.question, row.answer, row.references) == ("Colour 1? Colour 1?!", "green", ("green", "a colour"))
    assert row.details == {"level": 1}
    assert row.images[0]().size == (33, 20) and row.images[0]().mode == "RGB"
    assert row.sources[0].startswith("sha256:") and row.files == ()


def test_an_image_is_identified_by_its_content(saved):
    rows(4, first=12).to_parquet(saved / "same.parquet")
    path = card(saved / "b.toml", {"dataset": "same.parquet", **MAP, "validation": "", "test": ""})
    again = samples(load_card(path), "train")
    first = samples(load_card(card(saved / "c.toml", {"dataset": "saved", **MAP})), "test")
    assert [row.sources for row in again] == [row.sources for row in first]
    assert len({row.sources for row in first}) == 4


def test_a_folder_of_parquet_files_has_splits_by_their_names(folder):
    (folder / "parts").mkdir()
    rows(3).to_parquet(folder / "parts" / "train-00000-of-00001.parquet")
    rows(2, first=3).to_parquet(folder / "parts" / "test-00000-of-00001.parquet")
    loaded = load_card(card(folder / "d.toml", {"dataset": "parts", **MAP, "validation": ""}))
    assert (len(samples(loaded, "train")), len(samples(loaded, "test"))) == (3, 2)
    report = check_card(loaded, images=0)
    assert report.ok and report.opened == {"train": 3, "test": 2}


def test_folders_of_images_are_classes(folder):
    for split in ("train", "test"):
        for number, (name, image) in enumerate(zip(("cat", "dog"), images(2), strict=True)):
            (folder / "classes" / split / name).mkdir(parents=True)
            image.save(folder / "classes" / split / name / f"{number}.png")
    path = card(folder / "e.toml", {"dataset": "classes", "question": "", "answer": "label"}, prompt="What is it?")
    found = samples(load_card(path), "test")
    assert [(row.question, row.answer) for row in found] == [("What is it?", "cat"), ("What is it?", "dog")]


def test_options_and_several_images(folder):
    kinds = {"images": datasets.List(datasets.Image()), "question": datasets.Value("string")}
    kinds |= {"choices": datasets.List(datasets.Value("string")), "answer": datasets.Value("int64")}
    values = {"images": [images(2), images(1), []], "question": ["a?", "b?", "c?"]}
    values |= {"choices": [["x", "y"], ["u", "v", "w"], ["x", "y"]], "answer": [1, 0, 1]}
    datasets.Dataset.from_dict(values, features=datasets.Features(kinds)).save_to_disk(str(folder / "choices"))
    data = {"dataset": "choices", "images": "images", "choices": "choices", "test": "train"}
    path = card(folder / "f.toml", data, metric="multiple_choice", prompt="{question}\n{options}\nLetter?")
    two, one, none = samples(load_card(path), "test")
    assert (two.question, two.answer) == ("a?\nA. x\nB. y\nLetter?", "B")
    assert [len(row.images) for row in (two, one, none)] == [2, 1, 0]
    assert [opened().size for opened in two.images] == [(20, 20), (21, 20)]
    assert one.details == {"options": ["u", "v", "w"], "answer": "A"}


@pytest.mark.parametrize("count", [1, 27])
def test_each_option_has_a_letter(folder, count):
    kinds = {"image": datasets.Image(), "question": datasets.Value("string"), "answer": datasets.Value("int64")}
    kinds |= {"choices": datasets.List(datasets.Value("string"))}
    values = {"image": images(1), "question": ["a?"], "answer": [0], "choices": [[str(n) for n in range(count)]]}
    name = f"options-{count}"
    datasets.Dataset.from_dict(values, features=datasets.Features(kinds)).save_to_disk(str(folder / name))
    data = {"dataset": name, "choices": "choices", "test": "train"}
    path = card(folder / "k.toml", data, metric="multiple_choice", prompt="{question}\n{options}\nLetter?")
    with pytest.raises(DmoleError, match=f"row 0: a question needs 2 to 26 options, not {count}"):
        samples(load_card(path), "test")


def test_long_data_sets_are_converted_once(saved, monkeypatch, tmp_path):
    from dmole_cli.data.formats import hugging_face

    monkeypatch.setenv("DMOLE_CACHE", str(tmp_path))
    monkeypatch.setattr(hugging_face, "FEW", 3)
    path = card(saved / "g.toml", {"dataset": "saved", **MAP})
    first = [(row.question, row.sources) for row in samples(load_card(path), "train")]
    monkeypatch.setattr(hugging_face, "_rows", lambda *args: pytest.fail("it was read again"))
    assert [(row.question, row.sources) for row in samples(load_card(path), "train")] == first
    assert len(list((tmp_path / "rows").glob("*.arrow"))) == 1


def test_a_part_of_training_is_held_out_by_image(saved):
    path = card(saved / "h.toml", {"dataset": "saved", **MAP, "validation": "", "held_out": 0.3})
    train, held = (samples(load_card(path), split) for split in ("train", "validation"))
    assert len(train) + len(held) == 12 and 0 < len(held) < 12
    assert not {row.sources for row in train} & {row.sources for row in held}


@pytest.mark.parametrize(
    ("data", "part"),
    [
        ({"dataset": "saved", **MAP, "question": "asked"}, "no column 'asked' (it has: picture, q, a, level, others)"),
        ({"dataset": "saved", **MAP, "test": "exam"}, "no split 'exam' (it has: train, test)"),
        ({"dataset": "saved", **MAP, "images": "q"}, "column 'q' of the data set contains"),
        ({"dataset": "saved", **MAP, "choices": "others", "answer": "level"}, "row 2: the answer 2 is none of the 2"),
        ({"dataset": "nobody/nothing"}, "the hub was searched"),
        ({}, "names no data set"),
    ],
)
def test_invalid_options_are_named(saved, monkeypatch, data, part):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DmoleError) as caught:
        samples(load_card(card(saved / "i.toml", data)), "test")
    assert part in caught.value.message and caught.value.hint


def test_an_image_that_does_not_open_is_named(folder):
    kinds = datasets.Features(
        {"image": datasets.Value("binary"), "question": datasets.Value("string"), "answer": datasets.Value("string")}
    )
    broken = datasets.Dataset.from_dict({"image": [b"no image"], "question": ["a?"], "answer": ["b"]}, features=kinds)
    broken.cast_column("image", datasets.Image(decode=False)).save_to_disk(str(folder / "broken"))
    loaded = load_card(card(folder / "j.toml", {"dataset": "broken", "test": "train"}))
    with pytest.raises(DmoleError, match="cannot open an image of broken, split train, row 0"):
        samples(loaded, "test")[0].images[0]()


def test_a_data_set_goes_through_the_five_stages(saved, run):
    tiny.build_backbone(saved / "backbone")
    card(saved / "hub.toml", {"dataset": "saved", **MAP, "validation": ""})
    with (saved / "hub.toml").open("a", encoding="utf-8") as file:
        file.write("[generation]\nmax_new_tokens = 4\n[recipe]\nepochs = 1\nbatch_size = 4\nlearning_rate = 0.01\n")
    (saved / "dmole.toml").write_text(
        'backbone = "backbone"\ndevice = "cpu"\ntasks = ["hub.toml"]\nunseen = []\n[profile]\nportion = 1.0\nbatch_size = 4\n'
        '[allocate]\nbudget = "4%"\nrank = 4\nalpha = 8.0\n[router]\nepochs = 5\n',
        encoding="utf-8",
    )
    for command in ("profile", "allocate", "train-router", "train-task"):
        tiny.succeed(command, cwd=saved, run=run)
    said = json.loads(tiny.succeed("evaluate", "--stage", "all", "--json", cwd=saved, run=run).stdout)
    assert said and (saved / "dmole-run/evaluations/d-mole/1/hub.parquet").exists()
    before = tiny.files_of(saved / "dmole-run")
    tiny.succeed("train-task", cwd=saved, run=run)
    assert tiny.files_of(saved / "dmole-run") == before
