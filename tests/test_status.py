"""`dmole status`: what exists, is missing or stale, and the command that comes next."""

import json
import shlex
import shutil

import pytest
import tiny

FIRST, SECOND = tiny.TASKS


def next_command(done) -> list[str]:
    [line] = [line for line in done.stderr.splitlines() if line.startswith("next: ")]
    return shlex.split(line.removeprefix("next: ").removeprefix("run: ").removeprefix("dmole "))


def test_a_finished_stream(finished, run):
    shown = tiny.succeed("status", cwd=finished, run=run)
    rows = [line.split() for line in shown.stdout.splitlines() if line.strip()]
    assert max(map(len, shown.stdout.splitlines())) <= 80
    assert rows[0] == ["method", "task", "profile", "allocation", "router", "expert", "evaluations"]
    [own] = [row for row in rows if row[:2] == ["d-mole", FIRST]]
    assert own[4] == "done" and own.count("s") == 4 and "3/3" in own
    assert "next:" not in shown.stderr
    chains = json.loads(tiny.succeed("status", "--json", cwd=finished, run=run).stdout)["chains"]
    assert {(chain["method"], chain["task"]) for chain in chains} >= {("d-mole", tiny.UNSEEN), ("finetune", SECOND)}
    assert all(chain["evaluations"]["state"] == "done" for chain in chains)


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        (("routers", "experts", "evaluations"), ["train-router"]),
        (("experts", "evaluations"), ["train-task", "--method", "finetune"]),
        (("evaluations/seq-ft",), ["evaluate", "--method", "seq-ft", "--stage", "all"]),
    ],
)
def test_the_next_command_makes_what_is_missing(finished, run, tmp_path, folders, words):
    shutil.copytree(finished / "dmole-run", tmp_path / "run")
    for name in ("backbone", "tasks", "dmole.toml"):
        (tmp_path / name).symlink_to(finished / name)
    for folder in folders:
        shutil.rmtree(tmp_path / "run" / folder)
    shown = tiny.succeed("status", "run", cwd=tmp_path, run=run)
    assert next_command(shown) == [*words, "--run", "run"]


def test_an_empty_run_directory(fresh, run):
    shown = tiny.succeed("status", cwd=fresh, run=run)
    assert shown.stdout.count("missing") == 2 * 5 + 1 and next_command(shown) == ["profile"]


def test_stale_artifacts_say_since_what_and_the_command_mends_them(copy, run):
    card = copy / "tasks" / f"{FIRST}.toml"
    card.write_text(card.read_text(encoding="utf-8").replace("{question}", "{question} Now."), encoding="utf-8")
    shown = tiny.succeed("status", cwd=copy, run=run)
    assert "stale" in shown.stdout and f"the train split of task {FIRST} has changed since it was made" in shown.stdout
    words = next_command(shown)
    assert words[:3] == ["profile", "--task", FIRST] and words[-1] == "--force"
    tiny.succeed(*words, cwd=copy, run=run)
    assert next_command(tiny.succeed("status", cwd=copy, run=run))[0] != "profile"
