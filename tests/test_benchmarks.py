"""The cards of D-MoLE's nine tasks and of CoIN's eight, over made-up files in each benchmark's exact layout."""

from __future__ import annotations

import json
import pickle
import shutil
import tomllib
from collections.abc import Mapping
from pathlib import Path

import benchmarks
import pytest
import tiny
from benchmarks import BENCHMARKS, CAPTION, LETTER, SHORT, TEST, TRAIN

from dmole_cli.data.card import load_card
from dmole_cli.data.loading import check_card, samples
from dmole_cli.errors import DmoleError
from dmole_cli.metrics.base import load_metric

NINE = ("vizwiz_caption", "skvg", "textcaps", "iconqa", "ocrvqa", "flickr30k", "vizwiz", "kvqa", "pmcvqa")
EIGHT = ("scienceqa", "textvqa", "imagenet", "gqa", "coin-vizwiz", "coin-grounding", "vqav2", "coin-ocrvqa")
PROMPTS = {
    "vizwiz_caption": CAPTION,
    "skvg": "Based on the knowledge Bob is the one in {red}.\nPlease provide the bounding box coordinate of the region this "
    "sentence describes: <ref>the man</ref>",
    "iconqa": f"Which colour?\nA. red\nB. green\nC. blue\n{LETTER}",
    "ocrvqa": f"What colour? {SHORT}",
    "vizwiz": f"What colour? When the provided information is insufficient, respond with 'Unanswerable'. {SHORT}",
}
PROMPTS |= {"textcaps": CAPTION, "flickr30k": CAPTION, "kvqa": PROMPTS["ocrvqa"], "pmcvqa": PROMPTS["iconqa"]}
# rows, repeats, epochs, rows of a step; metric; least and most new tokens
RECIPES = {
    "vizwiz_caption": (117155, 1, 1, 80, "cider", 8, 30),
    "skvg": (23404, 1, 5, 80, "grounding", 1, 100),
    "textcaps": (109765, 1, 1, 80, "cider", 8, 30),
    "iconqa": (18946, 5, 1, 80, "multiple_choice", 1, 10),
    "ocrvqa": (166043, 1, 1, 64, "exact_match", 1, 100),
    "flickr30k": (145000, 1, 1, 80, "cider", 8, 30),
    "vizwiz": (20523, 1, 5, 80, "vqa_accuracy", 1, 10),
    "kvqa": (146408, 1, 1, 80, "exact_match", 1, 100),
    "pmcvqa": (176948, 1, 1, 80, "multiple_choice", 1, 10),
}
RULES = dict(
    zip(
        EIGHT,
        [
            "scienceqa",
            "vqa_accuracy",
            "normalised_match",
            "gqa",
            "vqa_accuracy",
            "grounding",
            "vqa_accuracy",
            "exact_match",
        ],
        strict=True,
    )
)


@pytest.fixture(scope="session")
def root(tmp_path_factory) -> Path:
    return benchmarks.write_all(tmp_path_factory.mktemp("benchmarks"))


def scores(name: str, rows, answers) -> list[float]:
    metric = load_metric(load_card(name).metric)
    return metric.score(answers, references=[r.references for r in rows], details=[r.details for r in rows])


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_in_its_layout_goes_through_card_format_and_metric(name, root):
    card = load_card(name)
    train, test = samples(card, "train", data_root=root), samples(card, "test", data_root=root)
    assert (len(train), len(test)) == (TRAIN, TEST)
    for row in [*train, *test]:
        assert all(opened().mode == "RGB" for opened in row.images)
        assert len(row.images) == (0 if name == "scienceqa" and row.sample_id == "test-00000" else 1)
        assert "<image>" not in row.question and row.question.strip()
    assert not {s for row in train for s in row.sources} & {s for row in test for s in row.sources}
    needs = load_metric(card.metric).NEEDS_DETAILS
    assert all(key in row.details for row in test for key in needs)
    right, wrong = scores(name, test, [row.answer for row in test]), scores(name, test, ["nothing of the kind"] * TEST)
    assert min(right) > 0.99 and max(wrong) < min(right)
    assert max(scores(name, test, [""] * TEST)) < min(right)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_without_its_files_lists_them_and_where_it_is_published(name, tmp_path):
    card = load_card(name)
    for root in (None, tmp_path):
        for split in filter(card.declares, ("train", "test")):
            with pytest.raises(DmoleError) as caught:
                samples(card, split, data_root=root)
            said = caught.value.message
            assert "dmole_cli" not in said and "(missing)" in said and "--data-root" in caught.value.hint
            assert card.source.url in said and card.source.url in caught.value.hint
            for key in ("train", "test", "annotations", "test_annotations", "problems", "pid_splits"):
                if name != "scienceqa_problems" or key in ("problems", "pid_splits"):
                    assert card.data.get(key, "") in said
    report = check_card(card, data_root=tmp_path)
    assert not report.ok and len(report.problems) == 1  # once, not for each split


def test_a_benchmark_with_its_test_files_alone_can_be_tested(root, tmp_path):
    shutil.copytree(root / "iconqa", tmp_path / "iconqa")
    (tmp_path / "iconqa" / "multi_text_choice_train.jsonl").unlink()
    assert len(samples(load_card("iconqa"), "test", data_root=tmp_path)) == TEST
    with pytest.raises(DmoleError, match=r"multi_text_choice_train\.jsonl \(missing\)"):
        samples(load_card("iconqa"), "train", data_root=tmp_path)


@pytest.mark.parametrize("name", NINE)
def test_questions_and_recipes_of_the_nine_are_those_of_the_paper(name, root):
    card = load_card(name)
    rows, repeats, epochs, batch, metric, least, most = RECIPES[name]
    assert samples(card, "test", data_root=root)[0].question == PROMPTS[name]
    # The training files hold whole instructions; test questions have the same form.
    assert samples(card, "train", data_root=root)[0].question == PROMPTS[name]
    assert (card.sizes.train, card.recipe.repeats, card.recipe.epochs, card.recipe.batch_size) == (
        rows,
        repeats,
        epochs,
        batch,
    )
    assert (card.metric, card.generation.min_new_tokens, card.generation.max_new_tokens) == (metric, least, most)
    assert card.recipe.learning_rate == 1e-4
    assert card.source.licence and card.source.citation and card.source.url


@pytest.mark.parametrize("name", EIGHT)
def test_coins_cards_have_the_right_rules(name, root):
    card = load_card(name)
    assert card.metric == RULES[name]
    assert (card.recipe.learning_rate, card.recipe.epochs) == (2e-4, 1)
    assert samples(card, "test", data_root=root)[0].question == samples(card, "train", data_root=root)[0].question
    assert card.source.licence and card.source.citation and card.source.url


def test_the_ten_answers_are_those_of_the_other_file(root):
    for name in ("vizwiz", "textvqa", "coin/vizwiz", "vqav2"):
        row = samples(load_card(name), "test", data_root=root)[1]
        assert row.references == ("green",) * 6 + ("unanswerable",) * 4
        assert row.answer == "green"
        # CoIN's records have an answer of their own, which its metric compares with.
        assert row.details.get("coin_answer") == (None if name == "vizwiz" else "green")


def test_boxes_have_the_coordinates_of_the_answers(root):
    pixels = samples(load_card("skvg"), "test", data_root=root)[0]
    assert pixels.details == {"box": [2.0, 2.0, 12.0, 10.0], "width": 24, "height": 20}
    assert pixels.answer == "[[83, 100, 500, 500]]"
    padded = samples(load_card("coin/grounding"), "test", data_root=root)[0]
    assert padded.details["box"] == pytest.approx([2.4, 4.8, 12.0, 14.4])
    assert (padded.details["width"], padded.details["height"]) == (24, 24)  # the square around 24 x 20


def test_scienceqa_is_read_in_its_published_layout(root):
    card = load_card("scienceqa_problems")
    splits = {split: samples(card, split, data_root=root) for split in ("train", "validation", "test")}
    assert {split: len(rows) for split, rows in splits.items()} == {"train": TRAIN, "validation": 2, "test": TEST}
    asked = f"Which colour?\nA. red\nB. green\nC. blue\n{LETTER}"
    blind, seen = splits["test"][0], splits["test"][1]
    assert (blind.question, blind.images, blind.answer) == (asked, (), "A")
    assert (seen.question, len(seen.images), seen.answer) == (f"Look.\n{asked}", 1, "B")
    assert seen.details == {"options": ["red", "green", "blue"], "answer": 1, "id": "1"}
    assert scores("scienceqa_problems", splits["test"], ["A", "b.", "It is C", ""]) == [1.0, 1.0, 1.0, 0.0]


def test_scienceqa_refuses_more_options_than_letters(root, tmp_path):
    shutil.copytree(root / "ScienceQA", tmp_path / "ScienceQA")
    path = tmp_path / "ScienceQA/problems.json"
    problems = json.loads(path.read_text(encoding="utf-8"))
    key = next(key for key, problem in problems.items() if problem["split"] == "train")
    problems[key]["choices"] = [str(number) for number in range(27)]
    path.write_text(json.dumps(problems), encoding="utf-8")
    with pytest.raises(DmoleError, match=f"problem {key}: a question needs 2 to 26 options, not 27"):
        samples(load_card("scienceqa_problems"), "train", data_root=tmp_path)


@pytest.mark.parametrize(("folder", "tasks"), [("dmole9", NINE), ("coin", EIGHT)])
def test_the_sequences_list_the_tasks_in_their_order(folder, tasks, run, tmp_path):
    path = tiny.ROOT / "pipelines" / folder / "dmole.toml"
    assert tuple(name.replace("/", "-") for name in tomllib.loads(path.read_text(encoding="utf-8"))["tasks"]) == tasks
    said = json.loads(tiny.succeed("tasks", "--config", path, "--json", cwd=tmp_path, run=run).stdout)
    assert (
        tuple(row["name"] for row in said if row["stage"]) == tasks == tuple(row["name"] for row in said)[: len(tasks)]
    )
    assert {*NINE, *EIGHT} <= {row["name"] for row in said}


def test_the_nine_and_the_eight_pass_the_check(root, run):
    said = json.loads(
        tiny.succeed("tasks", "check", *BENCHMARKS, "--data-root", root, "--json", cwd=root, run=run).stdout
    )
    assert [report["task"] for report in said] == list(BENCHMARKS)
    assert all(report["rows"] == {"train": TRAIN, "test": TEST} for report in said)  # none has a validation split


def test_a_validation_split_is_held_out_of_training_by_image(root, tmp_path):
    card = tmp_path / "mine.toml"
    card.write_text('like = "ocrvqa"\n[data]\nheld_out = 0.4\n', encoding="utf-8")
    train, held = (samples(load_card(card), split, data_root=root) for split in ("train", "validation"))
    everything = samples(load_card("ocrvqa"), "train", data_root=root)
    assert 0 < len(held) < TRAIN and len(train) + len(held) == TRAIN == len(everything)
    assert {*(r.sources for r in train), *(r.sources for r in held)} == {r.sources for r in everything}
    assert held[0].question == everything[0].question  # the format of the training file, with whole instructions
    assert [r.sample_id for r in held] == [f"validation-{i:05d}" for i in range(len(held))]
    with pytest.raises(DmoleError) as caught:
        samples(load_card("ocrvqa"), "validation", data_root=root)
    assert "held_out" in caught.value.hint


FORMATS = {
    "llava and coco_captions": "flickr30k",
    "grounding": "skvg",
    "multiple_choice": "iconqa",
    "vqa": "vizwiz",
    "question_answer": "kvqa",
    "coin": "coin/grounding",
    "scienceqa": "scienceqa_problems",
}


@pytest.fixture(scope="session")
def ready(tmp_path_factory, root) -> Path:
    """A tiny backbone beside the benchmarks."""
    folder = tmp_path_factory.mktemp("ready")
    tiny.build_backbone(folder / "backbone")
    shutil.copytree(root, folder / "data")
    return folder


@pytest.mark.parametrize("name", FORMATS.values(), ids=FORMATS)
def test_a_card_of_each_format_goes_through_the_five_stages(name, ready, run):
    stem = name.replace("/", "-")
    config = ready / f"{stem}.toml"
    config.write_text(
        f'backbone = "backbone"\ndevice = "cpu"\ntasks = ["{name}"]\nunseen = []\ndata_root = "data"\n'
        '[profile]\nportion = 1.0\nbatch_size = 4\n[allocate]\nbudget = "4%"\nrank = 4\nalpha = 8.0\n'
        "[router]\nepochs = 5\n[train]\nepochs = 1\nbatch_size = 8\n",
        encoding="utf-8",
    )
    through_the_stages(name, stem, ready, run)


def through_the_stages(name: str, stem: str, ready: Path, run: tiny.Forks) -> None:
    where = ("--config", f"{stem}.toml", "--run", f"run-{stem}")
    for command in ("profile", "allocate", "train-router", "train-task"):
        tiny.succeed(command, "--task", name, *where, cwd=ready, run=run)
    said = json.loads(tiny.succeed("evaluate", "--task", name, *where, "--json", cwd=ready, run=run).stdout)
    assert {outcome["task"] for outcome in said} == {stem}
    made = {str(p.relative_to(ready / f"run-{stem}")) for p in (ready / f"run-{stem}").rglob("*") if p.is_file()}
    assert {f"profiles/{stem}.parquet", f"allocations/{stem}.json", f"routers/{stem}.safetensors"} <= made
    assert {f"experts/{stem}.safetensors", f"evaluations/d-mole/1/{stem}.parquet"} <= made


def test_a_task_outside_the_stream_is_profiled_by_its_name(ready, run):
    done = tiny.succeed(
        "profile", "--task", "scienceqa", "--task", "coin/vizwiz", "--backbone", "backbone", "--data-root", "data",
        "--run", "alone", "--device", "cpu", cwd=ready, run=run,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    assert {path.name for path in (ready / "alone" / "profiles").iterdir()} == {
        "scienceqa.parquet",
        "coin-vizwiz.parquet",
    }
    again = tiny.succeed(
        "profile", "--task", "coin-vizwiz", "--backbone", "backbone", "--data-root", "data",
        "--run", "alone", "--device", "cpu", "--json", cwd=ready, run=run,
    )  # fmt: skip
    assert json.loads(again.stdout)[0]["written"] is False


def test_rows_can_be_sent_to_another_process(root):
    rows = samples(load_card("iconqa"), "test", data_root=root)
    copied = pickle.loads(pickle.dumps(rows))
    assert [(r.question, r.answer, r.details) for r in copied] == [(r.question, r.answer, r.details) for r in rows]
    assert isinstance(copied[0].details, Mapping) and copied[-1].sample_id == rows[len(rows) - 1].sample_id
