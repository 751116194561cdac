"""`dmole tasks check`: all problems of a task's data are counted, and the first few are listed."""

import json
from pathlib import Path

import pytest
import tiny
from PIL import Image

from dmole_cli.data.card import load_card
from dmole_cli.data.loading import check_card

CHECK = ("tasks", "check")
CARD = """
title = "colours"
format = "{format}"
prompt = "{{question}}"
metric = "exact_match"
[generation]
max_new_tokens = 4
[data]
train = "train.jsonl"
test = "test.jsonl"
images = "photos"
{data}
"""


def draw(folder: Path, name: str, colour: tuple[int, int, int]) -> str:
    (folder / "photos").mkdir(exist_ok=True)
    Image.new("RGB", (12, 10), colour).save(folder / "photos" / name)
    return name


def write_card(folder: Path, *, kind: str = "llava", data: str = "") -> Path:
    path = folder / "colours.toml"
    path.write_text(CARD.format(format=kind, data=data), encoding="utf-8")
    return path


def lines(path: Path, *records: object) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def row(image: str | None, answer: str = "red", number: int | None = None, question: str = "Colour?") -> dict:
    return tiny.record(image, question, answer) | ({} if number is None else {"id": number})


def found(report) -> dict[tuple[str, str], tuple[int, int]]:
    return {(problem.split, problem.kind): (problem.count, problem.of) for problem in report.problems}


@pytest.fixture
def spoilt(tmp_path) -> Path:
    """Invalid training records, at least one per kind of problem, and two test records."""
    names = [draw(tmp_path, f"{n}.png", (20 * n, 0, 0)) for n in range(6)]
    (tmp_path / "photos" / "broken.png").write_bytes(b"no image")
    draw(tmp_path, "copy.png", (20, 0, 0))  # the content of 1.png under another name
    lines(
        tmp_path / "train.jsonl",
        row(names[0], number=1),
        row(names[1], number=2),
        row(names[2], answer=" ", number=3),
        row(names[3], answer="", number=4),
        row(names[4], answer="a shade of red I suppose", number=5),
        row("broken.png", number=6),
        row("broken.png", number=7),
        row("gone.png", number=8),
        row(None, number=9),
        {"image": names[5], "conversations": "nothing"},
        row(names[5], number=1),
    )
    with (tmp_path / "train.jsonl").open("a", encoding="utf-8") as file:
        file.write("{not json\n")
    lines(tmp_path / "test.jsonl", row("copy.png"), row(names[0], answer="blue"))
    return write_card(tmp_path)


def test_everything_is_counted_in_one_pass(spoilt):
    report = check_card(load_card(spoilt))
    assert report.rows == {"train": 8, "test": 2}
    assert report.opened == {"train": 6, "test": 2}  # a file once, however many rows name it
    assert found(report) == {
        ("train", "record"): (2, 10),
        ("train", "answer"): (2, 10),
        ("train", "image"): (2, 10),
        ("train", "length"): (1, 10),
        ("train+test", "sources"): (2, 0),
        ("train", "no_image"): (1, 10),
        ("train", "id"): (1, 10),
    }
    first = {problem.kind: problem.first for problem in report.problems}
    assert "line 3" in first["answer"][0] and "line 4" in first["answer"][1]
    assert "broken.png" in first["image"][0] and "gone.png" in first["image"][1]
    assert "line 10" in first["record"][0] and "line 12: not JSON" in first["record"][1]
    assert set(first["sources"]) == {"file:copy.png", "file:0.png"}
    assert first["length"] == ("train-00002 (6 words)",)
    assert first["id"] == ("1 (train-00007)",)


def test_the_command_prints_problems_and_fails(spoilt, run):
    done = run(*CHECK, spoilt.name, cwd=spoilt.parent)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "problems in colours" in done.stderr
    assert "train: an answer is empty (2 of 10, 20.0 %)" in done.stdout
    assert "note: train: a row has no image (1 of 10, 10.0 %)" in done.stdout
    assert not (spoilt.parent / "dmole-run").exists()
    done = run(*CHECK, spoilt.name, "--json", cwd=spoilt.parent)
    [report] = json.loads(done.stdout)
    assert report["ok"] is False and {p["kind"] for p in report["problems"] if not p["serious"]} == {"no_image", "id"}


def test_a_card_that_is_typed_as_a_path_is_the_one_that_is_checked(tmp_path, run):
    """The stream has a task of the same name, with other data."""
    for folder in ("ours", "other"):
        (tmp_path / folder).mkdir()
        draw(tmp_path / folder, "1.png", (1, 1, 1))
        write_card(tmp_path / folder)
        lines(tmp_path / folder / "test.jsonl", row("1.png"))
    lines(tmp_path / "ours" / "train.jsonl", row("1.png"))
    lines(tmp_path / "other" / "train.jsonl", row("1.png"), row("1.png", question="Which colour?"))
    (tmp_path / "dmole.toml").write_text('tasks = ["ours/colours.toml"]\nunseen = []\n', encoding="utf-8")
    checked = run(*CHECK, "other/colours.toml", cwd=tmp_path)
    assert "colours: 2 train, 1 test" in checked.stdout, checked.stdout


def test_notes_alone_do_not_fail(tmp_path, run):
    name = draw(tmp_path, "a.png", (9, 9, 9))
    lines(tmp_path / "train.jsonl", row(name, number=1), row(None, number=1))
    lines(tmp_path / "test.jsonl", row(draw(tmp_path, "b.png", (9, 9, 8))))
    card = write_card(tmp_path)
    done = tiny.succeed(*CHECK, card.name, cwd=tmp_path, run=run)
    assert done.stdout.count("note: ") == 2


def test_other_commands_still_refuse_invalid_data(spoilt, run):
    """Only a check skips invalid records."""
    check_card(load_card(spoilt))
    done = run("profile", "--task", spoilt.name, cwd=spoilt.parent)
    assert done.returncode == 1 and "line 3" in done.stderr and "the answer is empty" in done.stderr


def test_a_large_file_with_invalid_records_is_not_cached(spoilt, monkeypatch):
    from dmole_cli.data.formats import _arrow
    from dmole_cli.data.loading import samples
    from dmole_cli.errors import DmoleError

    monkeypatch.setattr(_arrow, "IN_MEMORY", 0)
    monkeypatch.setenv("DMOLE_CACHE", str(spoilt.parent / "cache"))
    for _ in range(2):
        report = check_card(load_card(spoilt))
        assert report.rows["train"] == 8 and found(report)["train", "answer"] == (2, 10)
        with pytest.raises(DmoleError, match="line 3"):
            samples(load_card(spoilt), "train")
    assert len(list((spoilt.parent / "cache" / "rows").glob("*.arrow"))) == 1  # the test split's


def test_ids_without_answers_in_the_other_file(tmp_path):
    questions = [
        {"image": draw(tmp_path, f"{n}.png", (n, 1, 1)), "question": "What?", "question_id": n} for n in range(8)
    ]
    lines(tmp_path / "train.jsonl", *questions[:6], questions[0])
    lines(tmp_path / "test.jsonl", *questions[6:])
    answers = [{"question_id": n, "answers": [{"answer": "red"}] * 10} for n in (0, 6, 7)]
    (tmp_path / "answers.json").write_text(json.dumps({"annotations": answers}), encoding="utf-8")
    data = 'train_annotations = "answers.json"\ntest_annotations = "answers.json"'
    report = check_card(load_card(write_card(tmp_path, kind="vqa", data=data)))
    assert report.rows == {"train": 2, "test": 2}
    assert found(report) == {("train", "annotation"): (5, 7), ("train", "id"): (1, 7)}
    [annotation] = [problem for problem in report.problems if problem.kind == "annotation"]
    assert [name.rpartition(" ")[2] for name in annotation.first] == ["1", "2", "3"]


def test_captions_of_one_image_do_not_share_an_id(tmp_path):
    document = {
        "images": [{"id": n, "file_name": draw(tmp_path, f"{n}.png", (n, 2, 2))} for n in range(2)],
        "annotations": [{"image_id": n, "caption": f"caption {m}"} for n in range(2) for m in range(3)]
        + [{"image_id": 0, "caption": " "}],
    }
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(document), encoding="utf-8")
    report = check_card(load_card(write_card(tmp_path, kind="coco_captions")))
    assert report.rows == {"train": 6, "test": 2}
    assert found(report)["train", "answer"] == (1, 6)
    assert not {kind for _, kind in found(report)} & {"id", "annotation"}


# --- with a backbone ---


@pytest.fixture
def with_backbone(tmp_path) -> Path:
    tiny.build_backbone(tmp_path / "backbone")
    for split, shade in (("train", 0), ("test", 100)):
        rows = [
            row(draw(tmp_path, f"{split}{n}.png", (shade + n, 3, 3)), answer="red" if n else "reddish")
            for n in range(9)
        ]
        lines(tmp_path / f"{split}.jsonl", *rows, row(None, question="Why? " * 20))
    return write_card(tmp_path)


def checked(card: Path, run, *arguments: str, code: int = 1) -> dict:
    done = run(*CHECK, card.name, "--backbone", "backbone", "--json", *arguments, cwd=card.parent)
    assert done.returncode == code and "Traceback" not in done.stderr, done.stderr
    [report] = json.loads(done.stdout)
    return report


def test_a_backbone_counts_tokens(with_backbone, run):
    (with_backbone.parent / "dmole.toml").write_text(
        'backbone = "embedded"\ntasks = ["colours.toml"]\nunseen = []\n[train]\nmax_length = 60\n', encoding="utf-8"
    )
    report = checked(with_backbone, run)
    kinds = {(p["split"], p["kind"]): (p["count"], p["first"]) for p in report["problems"]}
    # Seven letters are seven tokens of this backbone, and one word.
    assert kinds["train", "length"] == (1, ["train-00000 (7 tokens)"])
    assert kinds["test", "length"][0] == 1
    assert kinds["train", "truncated"][0] == 1 and kinds["train", "truncated"][1][0].startswith("train-00009 (1")
    assert report["limit"] == 60


def test_without_a_maximum_length_the_backbones_positions_are_the_limit(with_backbone, run):
    report = checked(with_backbone, run)
    assert report["limit"] == 512
    assert not [p for p in report["problems"] if p["kind"] == "truncated"]


def test_lengths_equal_those_in_training(with_backbone):
    from dmole_cli.backbones.loading import load_backbone
    from dmole_cli.backbones.preview import SamplePreview
    from dmole_cli.data.loading import samples

    folder = with_backbone.parent / "backbone"
    rows, backbone = samples(load_card(with_backbone), "train"), load_backbone(str(folder))
    exact = [len(backbone.encode(sample, with_answer=True).tokens) for sample in rows]
    for limit in (0, 40, 10_000):  # measured, measured where near, estimated
        assert SamplePreview.of(str(folder), max_length=limit).lengths(rows) == exact


def test_five_samples_as_the_model_sees_them(with_backbone, run):
    shown = checked(with_backbone, run)["looks"]
    assert len(shown) == 5 and shown == checked(with_backbone, run)["looks"]
    others = checked(with_backbone, run, "--sample-seed", "3", "--show-samples", "2")["looks"]
    assert len(others) == 2
    assert {sample["sample_id"] for sample in others} != {sample["sample_id"] for sample in shown}
    seen = next(sample for sample in shown if sample["images"])
    assert seen["prompt"] == f"<user><image>×{tiny.IMAGE_TOKENS}Colour?<assistant>"
    assert seen["images"] == [{"width": 12, "height": 10}] and seen["tiles"] == 1
    assert seen["answer"].endswith("<end>") and seen["answer_tokens"] == len(seen["answer"].removesuffix("<end>")) + 1
    done = run(*CHECK, with_backbone.name, "--backbone", "backbone", cwd=with_backbone.parent)
    assert "images 12 x 10 in 1 tile(s)" in done.stdout and "| -> red<end>" in done.stdout


def test_a_missing_backbone_is_an_error(with_backbone, run):
    done = run(*CHECK, with_backbone.name, "--backbone", "./nothing", cwd=with_backbone.parent)
    assert done.returncode == 1 and "./nothing" in done.stderr and "Traceback" not in done.stderr


def test_tiles_of_every_family_are_counted(tmp_path):
    from dmole_cli.backbones.families import qwen2_5_vl
    from dmole_cli.backbones.loading import load_inputs
    from dmole_cli.backbones.preview import SamplePreview
    from dmole_cli.data.sample import Sample

    qwen2_5_vl.tiny(tmp_path / "qwen")
    (tmp_path / "qwen" / "model.safetensors").unlink()  # weights are not loaded
    inputs, _ = load_inputs(str(tmp_path / "qwen"))
    images = (lambda: Image.new("RGB", (40, 60)), lambda: Image.new("RGB", (60, 40)))
    shown = SamplePreview(inputs, limit=0).look(Sample("a", "What?", "red", ("red",), images=images))
    assert shown["tiles"] == 2  # packed patches of two images
    assert [size["width"] for size in shown["images"]] == [40, 60]


def test_a_check_that_was_interrupted_goes_on(tmp_path, monkeypatch):
    """Images are not opened again; blocks behind a changed file are checked again."""
    from dmole_cli.data import checked_images, checking

    monkeypatch.setattr(checking, "BLOCK", 2)
    monkeypatch.setattr(checked_images, "SAVED_EVERY", 0.0)
    monkeypatch.setenv("DMOLE_CACHE", str(tmp_path / "cache"))
    names = [draw(tmp_path, f"{number}.png", (20 * number, 0, 0)) for number in range(9)]
    (tmp_path / "photos" / names[1]).write_bytes(b"no image")
    lines(tmp_path / "train.jsonl", *(row(name) for name in [*names[:6], names[0], names[1]]))
    lines(tmp_path / "test.jsonl", row(names[3]), *(row(name) for name in names[6:]))
    card = load_card(write_card(tmp_path))
    expected = check_card(card)
    opened = []

    def interrupted(blocks, label, total):
        for number, block in enumerate(blocks):
            if label.endswith("test") and number == 1:
                raise KeyboardInterrupt
            yield block

    def counted(open_one, error_of=checking._error_of):
        opened.append(open_one)
        return error_of(open_one)

    monkeypatch.setattr(checking, "_error_of", counted)
    with pytest.raises(KeyboardInterrupt):
        check_card(card, track=interrupted)
    assert len(opened) == 8
    assert check_card(card) == expected and expected.opened == {"train": 6, "test": 4}
    assert len(opened) == 10 and not list((tmp_path / "cache").rglob("*.jsonl"))
    with pytest.raises(KeyboardInterrupt):
        check_card(card, track=interrupted)
    draw(tmp_path, names[3], (1, 2, 3))  # of the second block of training, and the first one of the test split
    opened.clear()
    check_card(card)
    assert len(opened) == 4 + 4
