"""`dmole update`: the steps that bring a stream up to date, what follows from each, and the bytes of the separate commands."""

import json
import os
import pty
import shutil
import subprocess
import sys
from contextlib import chdir
from dataclasses import replace
from pathlib import Path

import pytest
import tiny

from dmole_cli.artifacts.errors import OtherBackbone
from dmole_cli.artifacts.expert import read_expert, write_expert
from dmole_cli.artifacts.run import Run
from dmole_cli.cli.workspace import workspace
from dmole_cli.errors import DmoleError
from dmole_cli.planning.nodes import methods_of
from dmole_cli.planning.steps import Update, update_of
from dmole_cli.settings.reading import read_settings
from dmole_cli.verification.verify import inspect

FIRST, SECOND = tiny.TASKS


def planned(folder: Path, *methods: str, force: bool = False, **settings: object) -> Update:
    """The steps of a stream, without a process."""
    with chdir(folder):
        work = workspace(read_settings(Path("dmole.toml")).updated(**settings), Run(Path("dmole-run")))
        inspection = inspect(**work.parts, cached=True)
        return update_of(inspection, methods or methods_of(inspection), force=force)


def steps_of(update: Update) -> dict[tuple[str, str, str], str]:
    """(stage, method, task) -> state."""
    return {(step.call.stage, step.call.label, step.call.task): step.state for step in update.steps}


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def append_task(folder: Path) -> str:
    tiny.write_task(folder / "tasks", "third")
    change(folder / "dmole.toml", f'{SECOND}.toml"]', f'{SECOND}.toml", "tasks/third.toml"]')
    return "third"


def imported(folder: Path, task: str) -> Path:
    """Let an expert be one that was imported from an adapter."""
    path = folder / "dmole-run" / "experts" / f"{task}.safetensors"
    expert = read_expert(path)
    header = replace(expert.header, settings={"method": "d-mole", "imported": "peft"}, inputs={"adapter:a": "0" * 64})
    write_expert(path, replace(expert, header=header))
    (folder / "dmole-run" / "training" / "d-mole" / f"{task}.parquet").unlink()
    return path


def test_one_command_writes_the_bytes_of_the_separate_ones_and_goes_on_after_it_was_killed(fresh, finished, run):
    methods = ("--method", "d-mole", "--method", "finetune")
    killed = run("update", "--yes", *methods, cwd=fresh, batches=fresh / "batches", kill_at=2)
    assert killed.returncode != 0 and "step 1 of 15: profile" in killed.stderr
    (fresh / "batches").unlink()
    done = tiny.succeed("update", "--yes", *methods, cwd=fresh, run=run)
    assert "step 1 of 10: train-router halves" in done.stderr and "the stream is up to date" in done.stderr
    found, expected = (tiny.files_of(folder / "dmole-run") for folder in (fresh, finished))
    # The cache of the other stream also has the predictions of another method.
    expected = {name: content for name, content in expected.items() if "seq-ft" not in name}
    assert found.keys() == expected.keys()
    assert {name.partition("/")[0] for name in found if found[name] != expected[name]} == {"generations"}


def test_a_stream_that_is_up_to_date_says_so(finished, run):
    before = tiny.files_of(finished)
    done = tiny.succeed("update", "--yes", cwd=finished, run=run)
    assert "up to date, nothing to do" in done.stderr and done.stdout == ""
    shown = json.loads(tiny.succeed("update", "--dry-run", "--json", cwd=finished, run=run).stdout)
    assert shown["up_to_date"] and shown["steps"] == [] and shown["seconds"] == 0
    assert tiny.files_of(finished) == before


def test_an_empty_stream_needs_every_stage_of_d_mole_and_knows_no_time(fresh):
    update = planned(fresh)
    assert [(step.call.stage, step.call.task) for step in update.steps] == [
        *((stage, task) for stage in ("profile", "allocate", "train-router", "train-task") for task in tiny.TASKS),
        *(("evaluate", task) for task in (*tiny.TASKS, tiny.UNSEEN)),
    ]
    assert {step.seconds for step in update.steps if step.call.stage != "allocate"} == {None}


def test_what_follows_from_changed_data_is_shown_before_anything_is_done(copy, run):
    path = copy / "tasks" / FIRST / "train.jsonl"
    path.write_text("".join(path.read_text(encoding="utf-8").splitlines(keepends=True)[:-1]), encoding="utf-8")
    before = tiny.files_of(copy)
    update = planned(copy)
    own, later = ("stale", FIRST), ("follows", SECOND)
    expected = {
        ("profile", "", FIRST): "stale",
        ("train-router", "", FIRST): "stale",
        ("allocate", "d-mole", FIRST): "follows",
        **{("train-task", name, task): state for name in ("d-mole", "seq-ft") for state, task in (own, later)},
        ("train-task", "finetune", FIRST): "stale",
        **{("evaluate", name, t): "follows" for name in ("d-mole", "seq-ft") for t in (*tiny.TASKS, tiny.UNSEEN)},
        ("evaluate", "finetune", FIRST): "follows",
    }
    assert steps_of(update) == expected
    # The pretrained backbone's answers do not change.
    assert {step.after for step in update.steps if step.call.stage == "evaluate"} == {(1, 2), (1,)}
    [step] = [s for s in update.steps if (s.call.stage, s.call.label, s.call.task) == ("train-task", "d-mole", SECOND)]
    assert step.why == f"follows: train-task {FIRST} runs again" and step.seconds and step.seconds > 0
    shown = run("update", "--dry-run", cwd=copy)
    assert shown.returncode == 0 and "follows: profile colours runs again" in shown.stdout and "in all" in shown.stdout
    assert tiny.files_of(copy) == before


def test_stale_steps_run_and_leave_nothing_to_do(copy, run):
    tiny.shorten(copy, epochs=1)
    done = json.loads(tiny.succeed("update", "--yes", "--json", "--method", "d-mole", cwd=copy, run=run).stdout)
    assert [step["stage"] for step in done["steps"]] == [*["train-task"] * 2, *["evaluate"] * 3]
    assert all(outcome["written"] for outcome in done["outcomes"]) and len(done["outcomes"]) == 2 + 3 * 2
    assert planned(copy, "d-mole").up_to_date
    assert steps_of(planned(copy))["train-task", "seq-ft", FIRST] == "stale"
    tiny.succeed("evaluate", "--stage", "all", cwd=copy, run=run)  # would refuse stale experts and entries


def test_a_damaged_expert_that_comes_out_as_it_was_costs_nothing_else(copy, finished, run):
    path = copy / "dmole-run" / "experts" / f"{FIRST}.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    states = steps_of(planned(copy, "d-mole"))
    assert states.pop(("train-task", "d-mole", FIRST)) == "damaged" and set(states.values()) == {"may follow"}
    done = json.loads(tiny.succeed("update", "--yes", "--json", "--method", "d-mole", cwd=copy, run=run).stdout)
    assert [outcome["path"] for outcome in done["outcomes"] if outcome["written"]] == [str(path.relative_to(copy))]
    assert tiny.files_of(copy / "dmole-run") == tiny.files_of(finished / "dmole-run")


def test_a_new_task_takes_as_long_as_the_others(copy):
    task, costs = append_task(copy), copy / "dmole-run" / "costs"
    known = {"profile": (2.0, 6.0), "train-router": (1.0, 1.0), "train-task-d-mole": (30.0, 50.0)}
    for stage, seconds in known.items():
        for name, value in zip(tiny.TASKS, seconds, strict=True):
            (costs / stage / f"{name}.json").write_text(json.dumps({"seconds": value, "counts": {}}), encoding="utf-8")
    for name in (*tiny.TASKS, tiny.UNSEEN):
        text = json.dumps({"seconds": 6.0, "counts": {"generations": 20}})
        (costs / "evaluate-d-mole" / f"{name}.json").write_text(text, encoding="utf-8")
    update = planned(copy, "d-mole")
    found = {(step.call.stage, step.call.task): step.seconds for step in update.steps}
    assert found == {
        ("profile", task): 4.0,
        ("allocate", task): 0.0,
        ("train-router", task): 1.0,
        ("train-task", task): 40.0,
        # An entry of ten rows is a third of what three entries took.
        **{("evaluate", name): 2.0 for name in (*tiny.TASKS, tiny.UNSEEN)},
        ("evaluate", task): 8.0,
    }
    assert update.seconds == 59.0


def test_other_routing_likelihoods_and_metrics_that_exist_are_updated_with_cached_predictions(copy, run):
    tiny.succeed("evaluate", "--routing", "oracle", "--stage", "2", "--likelihood", cwd=copy, run=run)
    tiny.succeed("rescore", "normalised_match", "--method", "d-mole", cwd=copy, run=run)
    assert planned(copy).up_to_date
    change(copy / "tasks" / f"{SECOND}.toml", "exact_match", "rouge_l")
    assert steps_of(planned(copy, "d-mole")) == {
        ("evaluate", "d-mole", SECOND): "stale",
        ("evaluate", "d-mole@oracle", SECOND): "stale",
        ("rescore", "d-mole", SECOND): "follows",
    }
    done = json.loads(tiny.succeed("update", "--yes", "--json", cwd=copy, run=run).stdout)
    assert all(outcome["written"] and not outcome.get("generated") for outcome in done["outcomes"])
    assert planned(copy).up_to_date


def test_an_imported_expert_is_kept(copy):
    path = imported(copy, SECOND)
    update = planned(copy, "d-mole")
    assert {stage for stage, _, _ in steps_of(update)} == {"evaluate"}  # of what was made with the expert before it
    forced = planned(copy, "d-mole", force=True)
    assert ("train-task", "d-mole", SECOND) not in steps_of(forced) and ("profile", "", SECOND) in steps_of(forced)
    [kept] = forced.left_out
    assert kept.path == path.relative_to(copy) and f"dmole train-task --task {SECOND} --force" in kept.hint
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    update = planned(copy, "d-mole")
    own, *later = update.left_out
    assert own.hint.startswith(f"import it again: dmole import --task {SECOND} ADAPTER --force") and not update.steps
    assert len(later) == 3 and all("which is left out" in one.why for one in later) and not update.up_to_date


def test_what_cannot_be_made_is_left_out_and_what_would_be_lost_is_not_touched(copy, run):
    (copy / "dmole-run" / "evaluations" / "d-mole" / "2" / f"{FIRST}.parquet").unlink()
    (copy / "tasks" / FIRST / "test.jsonl").unlink()
    done = run("update", "--yes", cwd=copy)
    assert done.returncode == 1 and "error: the stream is not up to date: 1 file was left out" in done.stderr
    assert "the test split of task colours cannot be read" in done.stdout
    # The expert of the second task would become stale with the first one's, and its own data are gone.
    change(copy / "tasks" / f"{FIRST}.toml", "learning_rate = 0.01", "learning_rate = 0.02")
    (copy / "tasks" / SECOND / "train.jsonl").unlink()
    for force in (False, True):
        with pytest.raises(DmoleError, match=rf"{SECOND}.safetensors would become stale, and could not be made again"):
            planned(copy, "d-mole", force=force)


def test_artifacts_of_another_backbone_are_refused(finished):
    with pytest.raises(OtherBackbone):
        planned(finished, dtype="bfloat16")
    assert {step.state for step in planned(finished, dtype="bfloat16", force=True).steps} == {"forced"}


def test_without_a_terminal_somebody_must_have_said_yes(finished, run):
    done = run("update", cwd=finished)
    assert done.returncode == 2 and "--yes" in done.stderr


def test_it_asks_first(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "asked", ignore=shutil.ignore_patterns("evaluations"))
    ours, theirs = pty.openpty()
    os.write(ours, b"n\n")
    done = subprocess.run(
        [sys.executable, "-m", "dmole_cli", "update"],
        cwd=folder, env=tiny.environment(), stdin=theirs, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1 and "Run these steps? [y/N]" in done.stderr and "nothing was done" in done.stderr
    assert not (folder / "dmole-run" / "evaluations").exists() and "1 entry missing" in done.stdout
