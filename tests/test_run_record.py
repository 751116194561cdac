"""`run.toml`: later commands take stream, backbone and settings from the run directory."""

import shutil
import tomllib

import pytest
import tiny

from dmole_cli.settings.model import Settings
from dmole_cli.settings.record import changes, located, record_of

FIRST, SECOND = tiny.TASKS


@pytest.fixture
def without_configuration(copy):
    """The finished stream, whose dmole.toml is gone."""
    (copy / "dmole.toml").unlink()
    return copy


def test_later_commands_need_neither_backbone_nor_configuration(without_configuration, run):
    folder = without_configuration
    for stage in ("profile", "allocate", "train-router", "train-task"):
        done = tiny.succeed(stage, cwd=folder, run=run)
        assert done.stderr.count("up to date") == 2 and "differs" not in done.stderr, done.stderr
    assert "up to date" in tiny.succeed("evaluate", "--stage", "2", cwd=folder, run=run).stderr


def test_the_record_is_found_from_another_folder_and_after_a_move(without_configuration, run, tmp_path):
    moved = tmp_path / "moved"
    shutil.move(without_configuration, moved)
    (moved / "elsewhere").mkdir()
    done = tiny.succeed("profile", "--run", "../dmole-run", cwd=moved / "elsewhere", run=run)
    assert done.stderr.count("up to date") == 2


def test_a_command_says_what_differs_and_the_first_advice_is_not_destructive(copy, run):
    refused = run("profile", "--task", FIRST, "--portion", "0.5", cwd=copy)
    assert "warning: this differs from dmole-run/run.toml: profile.portion 0.4 -> 0.5" in refused.stderr
    assert refused.returncode == 1 and "portion 0.4 -> 0.5" in refused.stderr
    assert "-> leave out --portion 0.5 to use it, or run: dmole profile --task" in refused.stderr
    refused = run("train-router", "--task", FIRST, "--backbone", "embedded", cwd=copy)
    assert 'backbone "../backbone" -> "embedded"' in refused.stderr
    text = (copy / "dmole-run" / "run.toml").read_text(encoding="utf-8")
    assert 'backbone = "../backbone"' in text and "portion = 0.4" in text, "a command that failed changes no record"


def test_a_new_task_at_the_end_of_the_stream_is_no_difference(copy, run):
    text = (copy / "dmole.toml").read_text(encoding="utf-8")
    longer = text.replace(f'"tasks/{SECOND}.toml"]', f'"tasks/{SECOND}.toml", "tasks/{tiny.UNSEEN}.toml"]')
    (copy / "dmole.toml").write_text(
        longer.replace(f'unseen = ["tasks/{tiny.UNSEEN}.toml"]', "unseen = []"), encoding="utf-8"
    )
    done = tiny.succeed("profile", "--task", tiny.UNSEEN, cwd=copy, run=run)
    assert "tasks" not in done.stderr.partition("wrote")[0]
    assert f"../tasks/{tiny.UNSEEN}.toml" in (copy / "dmole-run" / "run.toml").read_text(encoding="utf-8")


def test_what_one_command_decides_is_not_recorded(copy, run):
    tiny.succeed(
        "evaluate", "--stage", "1", "--task", FIRST, "--split", "validation", "--routing", "oracle", cwd=copy, run=run
    )
    recorded = tomllib.loads((copy / "dmole-run" / "run.toml").read_text(encoding="utf-8"))
    assert recorded.keys() == {"backbone", "tasks", "unseen", "profile", "allocate", "router"}


def test_a_damaged_record_is_one_error(copy, run):
    for text in ("[", "tasks = 3", "unknown = 1", "\0"):
        (copy / "dmole-run" / "run.toml").write_text(text, encoding="utf-8")
        refused = run("profile", cwd=copy)
        assert refused.returncode == 1 and "run.toml" in refused.stderr and "Traceback" not in refused.stderr


def test_any_settings_survive_the_record(tmp_path):
    settings = Settings().updated(
        tasks=("a", "b"), seed=7, method={"ewc-lora": {"weight": 1e3}}, data_root=str(tmp_path), shared=None
    )
    settings = settings.updated(train=settings.train.updated(clip=float("inf"), dropout=0.25))
    root = tmp_path / "runs" / "one"
    text = record_of(settings, {"a": str(tmp_path / "cards" / "ä b.toml")}, root=root)
    table = located(tomllib.loads(text), root)
    assert table["tasks"] == [str(tmp_path / "cards" / "ä b.toml"), "b"] and table["data_root"] == str(tmp_path)
    assert table["train"] == {"clip": float("inf"), "dropout": 0.25} and table["method"] == {
        "ewc-lora": {"weight": 1000.0}
    }


def test_changes_are_named_by_setting():
    old = {"tasks": ["a"], "seed": 1, "profile": {"portion": 0.1}}
    assert changes(old, {"tasks": ["a", "b"], "seed": 1, "profile": {"portion": 0.1}}) == {}
    found = changes(old, {"tasks": ["b", "a"], "profile": {"portion": 0.2}, "allocate": {"rank": 4}})
    assert found == {
        "allocate.rank": "default -> 4",
        "profile.portion": "0.1 -> 0.2",
        "seed": "1 -> default",
        "tasks": '["a"] -> ["b", "a"]',
    }


def test_every_proposed_command_repeats_the_run_directory(copy, run):
    (copy / "dmole-run").rename(copy / "my run")
    for command in (
        ("allocate", "--method", "seq-ft", "--task", FIRST),
        ("train-task", "--method", "zero-shot"),
        ("rescore", "anls", "--task", "nothing-like-it", "--split", "validation"),
        ("report", "last", "--rescored", "anls"),
    ):
        refused = run(*command, "--run", "my run", cwd=copy)
        assert refused.returncode == 1
        hint = refused.stderr.partition("  -> ")[2]
        assert "dmole " not in hint or "--run 'my run'" in hint, refused.stderr
    done = tiny.succeed("profile", "--run", "my run", cwd=copy, run=run)
    assert "next: dmole allocate --budget 4% --run 'my run'" in done.stderr
