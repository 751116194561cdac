"""The cards of UCIT, MLLM-DCL and MLLM-ACL, over made-up files in the layout of MCITlib."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path

import mcitlib
import pytest
import tiny
from benchmarks import TEST, TRAIN
from mcitlib import BRIEF, CHOICE, TASKS

from dmole_cli.data.card import load_card
from dmole_cli.data.loading import check_card, samples
from dmole_cli.errors import DmoleError
from dmole_cli.metrics.base import load_metric

# The order of each publication.
SEQUENCES = {
    "ucit": ("imagenet_r", "arxivqa", "vizwiz_caption", "iconqa", "clevr_math", "flickr30k"),
    "mllm_dcl": ("remote_sensing", "medical", "driving", "science", "finance"),
    "mllm_acl": ("ocr", "math", "visual_perception", "gui_agent"),
}
# metric, epochs, batch size, learning rate, new tokens
RECIPES = {
    "ucit-imagenet_r": ("exact_match", 1, 64, 2e-4, 256),
    "ucit-arxivqa": ("exact_match", 1, 64, 2e-4, 256),
    "ucit-vizwiz_caption": ("caption_mean", 1, 64, 2e-4, 256),
    "ucit-iconqa": ("exact_match", 1, 64, 2e-4, 256),
    "ucit-clevr_math": ("exact_match", 1, 64, 2e-4, 256),
    "ucit-flickr30k": ("caption_mean", 1, 64, 2e-4, 256),
    "mllm_dcl-remote_sensing": ("contains_word", 1, 16, 2e-4, 128),
    "mllm_dcl-medical": ("contains", 3, 16, 2e-4, 128),
    "mllm_dcl-driving": ("contains_word", 1, 16, 2e-4, 128),
    "mllm_dcl-science": ("mllm_cl_science", 2, 16, 2e-4, 128),
    "mllm_dcl-finance": ("compact_match", 1, 16, 2e-4, 128),
    "mllm_acl-ocr": ("ocrbench", 3, 16, 5e-5, 2048),
    "mllm_acl-math": ("mathvista", 1, 16, 2e-4, 2048),
    "mllm_acl-visual_perception": ("contains_compact", 1, 16, 2e-4, 64),
    "mllm_acl-gui_agent": ("exact_match", 3, 16, 2e-4, 128),
}
TABLES = ("mllm_acl-math", "mllm_acl-gui_agent")


@pytest.fixture(scope="session")
def root(tmp_path_factory) -> Path:
    return mcitlib.write_all(tmp_path_factory.mktemp("mcitlib"))


def test_every_task_of_the_sequences_has_files() -> None:
    assert [f"{folder}-{name}" for folder, names in SEQUENCES.items() for name in names] == list(TASKS)
    assert list(RECIPES) == list(TASKS)


@pytest.mark.parametrize("name", TASKS)
def test_a_task_in_its_layout_goes_through_card_format_and_metric(name: str, root: Path) -> None:
    card = load_card(name)
    train, test = samples(card, "train", data_root=root), samples(card, "test", data_root=root)
    assert (len(train), len(test)) == (TRAIN, TEST)
    for row in [*train, *test]:
        assert len(row.images) == 1 and row.images[0]().mode == "RGB"
        assert "<image>" not in row.question and row.question.strip()
    assert not {s for row in train for s in row.sources} & {s for row in test for s in row.sources}
    recipe, metric = card.recipe, load_metric(card.metric)
    assert (card.metric, recipe.epochs, recipe.batch_size, recipe.learning_rate, card.generation.max_new_tokens) == (
        RECIPES[name]
    )
    assert all(key in row.details for row in test for key in metric.NEEDS_DETAILS)
    assert card.source.licence and card.source.citation and card.source.url
    if card.metric == "caption_mean":
        return  # METEOR takes seconds; test_mcitlib_metrics.py has the metric
    answers = {"right": [row.answer for row in test], "wrong": ["nothing of the kind"] * TEST, "empty": [""] * TEST}
    scores = {
        said: metric.score(texts, references=[r.references for r in test], details=[r.details for r in test])
        for said, texts in answers.items()
    }
    assert scores == {"right": [1.0] * TEST, "wrong": [0.0] * TEST, "empty": [0.0] * TEST}


@pytest.mark.parametrize("name", TASKS)
def test_a_task_without_its_files_lists_them_and_where_it_is_published(name: str, tmp_path: Path) -> None:
    card = load_card(name)
    with pytest.raises(DmoleError) as caught:
        samples(card, "test", data_root=tmp_path)
    said = caught.value.message
    assert "(missing)" in said and card.source.url in said and "--data-root" in caught.value.hint
    for key in ("train", "test", "annotations", "test_annotations"):
        assert card.data.get(key, "") in said
    assert len(check_card(card, data_root=tmp_path).problems) == 1


def asked(name: str, root: Path) -> list[str]:
    return [samples(load_card(name), split, data_root=root)[0].question for split in ("train", "test")]


def test_questions_are_those_that_the_benchmarks_ask(root: Path) -> None:
    assert asked("ucit/vizwiz_caption", root) == [BRIEF, BRIEF]
    assert asked("ucit/iconqa", root) == [CHOICE, CHOICE]
    # The test records of these two lack the instruction.
    whole = "What is it? Answer the question with a single word (or phrase)."
    assert asked("mllm_dcl/medical", root) == [whole, whole]
    finance = [row.question for row in samples(load_card("mllm_dcl/finance"), "test", data_root=root)]
    letters = "Will it rise? Answer with the given letter directly, e.g., A, B, C, D."
    assert finance == [letters, "Will it rise? Only answer with yes or no directly."] * 2


def test_all_captions_of_an_image_are_references(root: Path) -> None:
    for name in ("ucit/vizwiz_caption", "ucit/flickr30k"):
        row = samples(load_card(name), "test", data_root=root)[1]
        assert row.references == ("A plain green picture.", "One plain green picture.")
        assert row.details["coin_answer"] == "A plain green picture."


def test_captions_that_lack_an_image_are_named(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "UCIT/Flickr30k", tmp_path / "UCIT/Flickr30k")
    shutil.copytree(root / "UCIT/datasets/Flickr30k", tmp_path / "UCIT/datasets/Flickr30k")
    path = tmp_path / "UCIT/Flickr30k/val_coco_type_3000.json"
    captions = json.loads(path.read_text(encoding="utf-8"))
    captions["images"] = captions["images"][1:]
    path.write_text(json.dumps(captions), encoding="utf-8")
    with pytest.raises(DmoleError, match=r"val_coco_type_3000\.json has no answers for 1 of .*: 0$"):
        samples(load_card("ucit/flickr30k"), "test", data_root=tmp_path)


def test_any_of_several_answers_is_a_reference(root: Path) -> None:
    row = samples(load_card("mllm_acl/ocr"), "test", data_root=root)[2]
    assert (row.answer, row.references) == ("blue", ("blue", "BLUE"))


def test_answers_in_a_table_are_paired_by_the_number_of_the_row(root: Path) -> None:
    rows = samples(load_card("mllm_acl/math"), "test", data_root=root)
    assert [row.answer for row in rows] == ["red", "green", "blue", "red"]
    assert rows[1].details["choices"] == ["red", "green", "blue"] and rows[1].details["answer_option"] == "B"
    assert rows[0].details["question_type"] == "free_form" and "answer_option" not in rows[0].details
    assert [row.answer for row in samples(load_card("mllm_acl/gui_agent"), "test", data_root=root)] == [*"ABCA"]


@pytest.fixture
def screens(root: Path, tmp_path: Path) -> Path:
    """A copy of the files whose table of answers may be changed."""
    for kind in ("APP", "APP_test"):
        shutil.copytree(root / "Ability_data" / kind, tmp_path / "Ability_data" / kind)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("index\tanswer\n0\tA\n1\t\n2\tC\n3\tA\n", "ALL_1"),
        ("index\tanswer\n0\tA\n", "ALL_1"),
        ("index,answer\n0,A\n", r"no column 'answer' \(it has: index,answer\)"),
        ("", "no column 'answer'"),
    ],
    ids=["empty", "short", "separator", "nothing"],
)
def test_a_table_without_an_answer_is_named(text: str, said: str, screens: Path) -> None:
    card = load_card("mllm_acl/gui_agent")
    (screens / card.data["test_annotations"]).write_text(text, encoding="utf-8")
    with pytest.raises(DmoleError, match=said):
        samples(card, "test", data_root=screens)
    assert len(samples(card, "train", data_root=screens)) == TRAIN


def test_a_table_that_is_no_text_is_refused(screens: Path) -> None:
    card = load_card("mllm_acl/gui_agent")
    (screens / card.data["test_annotations"]).write_bytes(b"answer\n\xff\n")
    with pytest.raises(DmoleError, match="cannot read"):
        samples(card, "test", data_root=screens)
    other = screens / "mine.toml"
    other.write_text('like = "mllm_acl/gui_agent"\n[data]\ntest_annotations = "Ability_data/APP_test/test.json"\n')
    with pytest.raises(DmoleError, match=r"test\.json is not a table"):
        samples(load_card(other), "test", data_root=screens)


@pytest.mark.parametrize("choices", ["red or green", "[1, 2]", "('a', 'b')"])
def test_options_that_are_no_list_of_texts_are_refused(choices: str, root: Path, tmp_path: Path) -> None:
    for kind in ("Math", "Math_test"):
        shutil.copytree(root / "Ability_data" / kind, tmp_path / "Ability_data" / kind)
    card = load_card("mllm_acl/math")
    row = {"answer": "red", "choices": choices, "question_type": "multi_choice", "answer_type": "text"}
    mcitlib.table(tmp_path / card.data["test_annotations"], [row] * TEST)
    with pytest.raises(DmoleError, match="'choices' must be a list of texts"):
        samples(card, "test", data_root=tmp_path)


def test_a_table_of_answers_is_optional(root: Path, tmp_path: Path) -> None:
    """A test file that has the answers needs no table."""
    card = tmp_path / "mine.toml"
    card.write_text(
        'like = "mllm_acl/gui_agent"\n[data]\ntest = "Ability_data/VP_test/test.json"\ntest_annotations = ""\n'
    )
    other = tmp_path / "other.toml"
    other.write_text(card.read_text() + 'test_images = "Ability_data/VP_test"\n')
    assert [row.answer for row in samples(load_card(other), "test", data_root=root)][:2] == ["(A) 0", "(B) 1"]


@pytest.mark.parametrize("folder", SEQUENCES)
def test_the_sequences_list_the_tasks_in_their_order(folder: str, run: tiny.Forks, tmp_path: Path) -> None:
    path = tiny.ROOT / "pipelines" / folder / "dmole.toml"
    tasks = [f"{folder}/{name}" for name in SEQUENCES[folder]]
    assert tomllib.loads(path.read_text(encoding="utf-8"))["tasks"] == tasks
    said = json.loads(tiny.succeed("tasks", "--config", path, "--json", cwd=tmp_path, run=run).stdout)
    assert [row["name"] for row in said if row["stage"]] == [name.replace("/", "-") for name in tasks]
    script = (path.parent / "run.sh").read_text(encoding="utf-8")
    assert f'benchmark.sh" {folder} "$@"' in script and (path.parent / "run.sh").stat().st_mode & 0o111


def test_all_tasks_pass_the_check(root: Path, run: tiny.Forks) -> None:
    done = tiny.succeed("tasks", "check", *TASKS, "--data-root", root, "--json", cwd=root, run=run)
    said = json.loads(done.stdout)
    assert [report["task"] for report in said] == list(TASKS)
    assert all(report["rows"] == {"train": TRAIN, "test": TEST} for report in said)
