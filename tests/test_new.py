"""`dmole tasks new`: a card for a user's own data, guessed from what the files hold, which the five stages accept unchanged."""

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import tiny
from PIL import Image

from dmole_cli.commands.tasks_new import _listing
from dmole_cli.data.card import Recipe, load_card
from dmole_cli.data.loading import check_card, samples
from dmole_cli.data.new_card import new_card
from dmole_cli.data.recipes import recipe_of, steps_of

NEW = ("tasks", "new")
COLOURS = {"red": (220, 30, 30), "green": (30, 190, 60), "blue": (40, 60, 220)}
NAMES = list(COLOURS)
ROWS = 60


def draw(folder: Path, count: int = ROWS) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{n}.png" for n in range(count)]
    for n, name in enumerate(names):
        shade = tuple(value - n % 30 for value in COLOURS[NAMES[n % 3]])
        Image.new("RGB", (20 + n // 30, 20), shade).save(folder / name)
    return names


def colour(n: int) -> str:
    return NAMES[n % 3]


def lines(path: Path, records: list) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def new(folder: Path, run, *arguments: object, source: str = "data.jsonl") -> dict:
    done = tiny.succeed(*NEW, "my.toml", "--from", source, *arguments, "--json", cwd=folder, run=run)
    return json.loads(done.stdout)


KINDS = {
    "llava": (lambda name, n: tiny.record(name, "Colour?", colour(n)), "exact_match"),
    "question_answer": (lambda name, n: {"img": name, "query": "Colour?", "label": colour(n)}, "exact_match"),
    "multiple_choice": (
        lambda name, n: {"image": name, "question": "Colour?", "options": NAMES, "answer": n % 3},
        "multiple_choice",
    ),
    "vqa": (
        lambda name, n: {"image": name, "question": "Colour?", "question_id": n, "answers": [colour(n)] * 10},
        "vqa_accuracy",
    ),
    "grounding": (
        lambda name, n: {"image": name, "phrase": "it", "bbox": [1, 1, 9, 9 + n % 9], "width": 20, "height": 20},
        "grounding",
    ),
    "coin": (
        lambda name, n: {"question_id": n, "image": name, "text": "Colour? One word.", "answer": colour(n)},
        "exact_match",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_records_of_each_format_become_a_card_that_can_be_used(kind, tmp_path, run):
    record, metric = KINDS[kind]
    lines(tmp_path / "data.jsonl", [record(name, n) for n, name in enumerate(draw(tmp_path / "pics"))])
    said = new(tmp_path, run)
    card = load_card(tmp_path / "my.toml")
    assert (card.format, card.metric) == (kind, metric)
    assert said["guessed"]["format"]["guess"] == kind and all(entry["why"] for entry in said["guessed"].values())
    assert card.data["images"] == "pics"  # found beside the file
    assert {split: len(samples(card, split)) for split in said["rows"]} == said["rows"]
    assert set(said["rows"]) == {"train", "validation", "test"} and sum(said["rows"].values()) == ROWS
    report = check_card(card)
    assert report.ok, [str(problem) for problem in report.problems]
    assert len({row.question for row in samples(card, "train")}) == 1


def test_captions_become_a_card(tmp_path, run):
    names = draw(tmp_path / "pics")
    document = {
        "images": [{"id": n, "file_name": name} for n, name in enumerate(names)],
        "annotations": [
            {"image_id": n, "caption": f"A {colour(n)} image, {m}."} for n in range(ROWS) for m in range(2)
        ],
    }
    (tmp_path / "data.jsonl").write_text(json.dumps(document, indent=1), encoding="utf-8")
    said = new(tmp_path, run)
    card = load_card(tmp_path / "my.toml")
    assert (card.format, card.metric) == ("coco_captions", "cider")
    assert said["rows"]["train"] + 2 * (said["rows"]["validation"] + said["rows"]["test"]) == 2 * ROWS
    assert card.generation.max_new_tokens >= len(["A", "green", "image,", "1."])
    lines(tmp_path / "pairs.jsonl", [{"image": name, "caption": f"A {colour(n)} one"} for n, name in enumerate(names)])
    new(tmp_path, run, "--force", source="pairs.jsonl")
    card = load_card(tmp_path / "my.toml")
    assert (card.format, card.metric) == ("question_answer", "cider")
    assert samples(card, "train")[0].question == "Provide a one-sentence caption for the provided image."


def test_columns_of_a_data_set_become_a_card(tmp_path, run):
    datasets = pytest.importorskip("datasets")
    names = draw(tmp_path / "pics")
    features = datasets.Features(
        {"picture": datasets.Image(), "question": datasets.Value("string"), "label": datasets.ClassLabel(names=NAMES)}
    )
    rows = [
        {"picture": Image.open(tmp_path / "pics" / name), "question": f"Colour? ({n})", "label": n % 3}
        for n, name in enumerate(names)
    ]
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "data.parquet")
    said = new(tmp_path, run, source="data.parquet")
    card = load_card(tmp_path / "my.toml")
    assert (card.format, card.metric, card.data["images"]) == ("hugging_face", "exact_match", "picture")
    assert sum(said["rows"].values()) == ROWS and samples(card, "test")[0].answer in NAMES


def test_three_files_are_three_splits_and_two_are_training_and_test(tmp_path, run):
    names = draw(tmp_path)
    for split, first, last in (("a", 0, 40), ("b", 40, 50), ("c", 50, 60)):
        lines(tmp_path / f"{split}.jsonl", [tiny.record(names[n], "Colour?", colour(n)) for n in range(first, last)])
    assert new(tmp_path, run, "--from", "b.jsonl", "--from", "c.jsonl", source="a.jsonl")["rows"] == {
        "train": 40, "validation": 10, "test": 10,
    }  # fmt: skip
    rows = new(tmp_path, run, "--from", "c.jsonl", "--force", source="a.jsonl")["rows"]
    assert rows["test"] == 10 and rows["train"] + rows["validation"] == 40
    card = load_card(tmp_path / "my.toml")
    assert (card.data["test"], card.data["held_out"], card.data["held_out_test"]) == ("c.jsonl", 0.1, 0.0)


def test_one_file_is_divided_by_image_and_always_the_same_way(tmp_path, run):
    names = draw(tmp_path)
    lines(tmp_path / "data.jsonl", [tiny.record(name, f"Colour {m}?", "red") for name in names for m in range(3)])
    new(tmp_path, run)
    card = load_card(tmp_path / "my.toml")
    splits = {split: {row.sources for row in samples(card, split)} for split in ("train", "validation", "test")}
    assert sum(map(len, splits.values())) == ROWS == len(set.union(*splits.values()))  # no image in two of them
    content = (tmp_path / "my.toml").read_bytes()
    new(tmp_path, run, "--force")
    assert (tmp_path / "my.toml").read_bytes() == content


def made(folder: Path, records: list) -> tuple:
    """The card of `new_card` for JSON lines, and its rows by split, which `tasks check` finds, too."""
    lines(folder / "data.jsonl", records)
    new = new_card(folder / "my.toml", [folder / "data.jsonl"], learning_rate=1e-3, force=True)
    card = load_card(folder / "my.toml")
    report = check_card(card)
    assert report.ok, [str(problem) for problem in report.problems]
    assert new.rows == report.rows
    return card, {split: samples(card, split) for split in new.rows}


@pytest.mark.parametrize("field", ["image", "photo"])
def test_an_image_with_a_label_is_a_question_of_a_word(tmp_path, field):
    names = draw(tmp_path)
    card, splits = made(tmp_path, [{field: name, "label": colour(n)} for n, name in enumerate(names)])
    assert card.metric == "exact_match" and card.prompt.startswith("What is shown")
    assert splits["train"][0].question == card.prompt and len(splits["train"][0].images) == 1


def test_copies_of_an_image_are_in_the_same_split(tmp_path):
    names = draw(tmp_path)
    for n, name in enumerate(names):
        shutil.copy(tmp_path / name, tmp_path / f"copy{n}.png")
    records = [tiny.record(name, "Colour?", "red") for name in [*names, *(f"copy{n}.png" for n in range(ROWS))]]
    _, splits = made(tmp_path, records)
    assert sum(map(len, splits.values())) == 2 * ROWS and min(map(len, splits.values())) > 1


def test_rows_that_share_an_image_are_in_the_same_split(tmp_path):
    names = draw(tmp_path)
    pairs = [
        {**tiny.record(None, "Same?", "no"), "image": [a, b]} for a, b in zip(names[::2], names[1::2], strict=True)
    ]
    for record in pairs:
        record["conversations"][0]["value"] = "<image><image>Same?"
    _, splits = made(tmp_path, [*pairs, *(tiny.record(name, "Colour?", "red") for name in names)])
    assert sum(map(len, splits.values())) == ROWS // 2 + ROWS


def test_rows_without_image_are_divided_by_their_content(tmp_path):
    card, splits = made(tmp_path, [tiny.record(None, f"Is {n // 2} even?", "yes") for n in range(48)])
    asked = {split: {row.question for row in rows} for split, rows in splits.items()}
    assert sum(map(len, asked.values())) == 24  # both rows of a question are in one split
    changed = card.updated(prompt="Q: {question}")
    assert [row.answer for row in samples(changed, "test")] == [row.answer for row in splits["test"]]
    assert len(samples(changed, "train")) == len(splits["train"])


@pytest.mark.parametrize("count", [20, 66, 700])
def test_a_recipe_makes_enough_steps(count):
    batch_size, epochs = recipe_of(count)
    assert 80 <= steps_of(Recipe(batch_size=batch_size, epochs=epochs), count) <= 110
    assert recipe_of(10_000) == (32, 1)


def test_very_few_steps_are_a_warning(tmp_path, run):
    made(tmp_path, [tiny.record(name, "Colour?", "red") for name in draw(tmp_path)])
    card = tmp_path / "my.toml"
    text = re.sub(r"epochs = \d+\nbatch_size = \d+", "epochs = 1\nbatch_size = 32", card.read_text())
    card.write_text(text, encoding="utf-8")
    done = tiny.succeed("tasks", "check", "my.toml", cwd=tmp_path, run=run)
    assert "warning: my is trained in 2 steps" in done.stderr


def test_a_proposal_never_overwrites_the_stream(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    card, config = Path("my.toml"), Path("dmole.toml")
    assert _listing(card, config) == "printf 'tasks = [\"my.toml\"]\\nunseen = []\\n' >> dmole.toml"
    for name in ("my.toml", "it's 100%.toml"):
        subprocess.run(["bash", "-c", _listing(Path(name), config)], check=True)
        assert tomllib.loads(config.read_text()) == {"tasks": [name], "unseen": []}
        config.unlink()
    config.write_text('device = "cpu"\ntasks = ["a.toml"]\n[train]\nepochs = 3\n', encoding="utf-8")
    assert _listing(card, config) == '# add the task to dmole.toml: tasks = ["a.toml", "my.toml"]'
    assert "has the task already" in _listing(Path("a.toml"), config)
    config.write_text('device = "cpu"\n', encoding="utf-8")
    assert _listing(card, config) == '# add this line at the top of dmole.toml: tasks = ["my.toml"]'


def test_limits_follow_the_answers(tmp_path, run):
    tiny.build_backbone(tmp_path / "backbone")
    names = draw(tmp_path)
    answer = 'a longer "answer" \\ of so many words that nobody would call it short'
    lines(tmp_path / "data.jsonl", [tiny.record(name, "What?", answer) for name in names])
    new(tmp_path, run)
    estimated = load_card(tmp_path / "my.toml")
    assert estimated.metric == "cider" and estimated.generation.max_new_tokens >= len(answer.split())
    said = new(tmp_path, run, "--backbone", "backbone", "--force")
    counted = load_card(tmp_path / "my.toml")
    assert counted.generation.max_new_tokens == -(-(len(answer) + 2) // 8) * 8  # a token a byte
    assert counted.recipe.learning_rate == 1e-4 and "--backbone backbone" in said["next"][0]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "no record"),
        ("[1, 2]", "int where a record is expected"),
        ('{"image": "0.png", "colour": "red"}\n' * 2, "no format fits"),
        ('{"rows": [{"a": 1}]}', "no format fits"),
        ('{"image": "0.png", "phrase": "it", "bbox": [1, 1, 2, 2]}\n' * 2, "'width' and 'height'"),
        (
            '{"image": "0.png", "phrase": "it", "bbox": ["left", 1, 2, 2], "width": 20, "height": 20}\n' * 2,
            "line 1: 'bbox' must be 4 numbers",
        ),
        (json.dumps(tiny.record("gone.png", "What?", "red")) + "\n", "gone.png"),
        (json.dumps(tiny.record("0.png", "What?", "")) + "\n", "line 1: the answer is empty"),
        (json.dumps(tiny.record("0.png", "What?", "red")) + "\n", "too few images"),
        ("{broken", "not JSON"),
    ],
)
def test_unusable_data_is_an_error_and_nothing_is_written(tmp_path, run, content, said):
    draw(tmp_path, 1)
    (tmp_path / "data.jsonl").write_text(content, encoding="utf-8")
    done = run(*NEW, "my.toml", "--from", "data.jsonl", cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert said in done.stderr
    assert not (tmp_path / "my.toml").exists()


def test_an_existing_card_is_not_overwritten(tmp_path, run):
    (tmp_path / "my.toml").write_text("mine", encoding="utf-8")
    lines(tmp_path / "data.jsonl", [tiny.record(name, "What?", "red") for name in draw(tmp_path)])
    done = run(*NEW, "my.toml", "--from", "data.jsonl", cwd=tmp_path)
    assert done.returncode == 1 and "exists already" in done.stderr and "--force" in done.stderr
    assert (tmp_path / "my.toml").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("new", "my.toml"), 2, "--from"),
        (("new", "--from", "data.jsonl"), 2, "CARD"),
        (("new", "my.txt", "--from", "data.jsonl"), 1, "a .toml file"),
        (("new", "my.toml", "--from", "nowhere.jsonl"), 1, "nowhere.jsonl does not exist"),
        (("check", "--open-images", "many"), 2, "Invalid value for '--open-images'"),
    ],
)
def test_usage_errors(tmp_path, run, arguments, code, said):
    lines(tmp_path / "data.jsonl", [tiny.record(None, "What?", "red")])
    done = run("tasks", *arguments, cwd=tmp_path)
    assert done.returncode == code and "Traceback" not in done.stderr
    assert said in " ".join(done.stderr.replace("│", " ").split())


def test_a_users_own_file_goes_through_the_five_stages(tmp_path, run):
    """Runs the commands that `tasks new` proposes."""
    tiny.build_backbone(tmp_path / "backbone")
    names = draw(tmp_path / "photos")
    lines(tmp_path / "data.jsonl", [tiny.record(name, "Colour?", colour(n)[0]) for n, name in enumerate(names)])
    said = new(tmp_path, run, "--images", "photos", "--backbone", "backbone")
    config = next(line for line in said["next"] if line.startswith("printf"))
    text = config.removeprefix("printf '").partition("'")[0].encode().decode("unicode_escape")
    assert tomllib.loads(text) == {"tasks": ["my.toml"], "unseen": []}
    (tmp_path / "dmole.toml").write_text(text + 'device = "cpu"\n', encoding="utf-8")
    for line in said["next"]:
        if line.startswith("dmole "):
            more = ["--portion", "1", "--batch-size", "4"] if " profile " in line else []
            tiny.succeed(*line.split()[1:], *more, cwd=tmp_path, run=run)
    made = {str(p.relative_to(tmp_path / "dmole-run")) for p in (tmp_path / "dmole-run").rglob("*.*") if p.is_file()}
    assert {"profiles/my.parquet", "allocations/my.json", "routers/my.safetensors", "experts/my.safetensors"} <= made
    assert {f"evaluations/d-mole/{stage}/my.parquet" for stage in (0, 1)} <= made
    [report] = json.loads(tiny.succeed("report", "last", "--json", cwd=tmp_path, run=run).stdout)
    assert report["tasks"]["my"]["last"] is not None
