"""`dmole answer`: the answers, routes and losses of an evaluation of the same samples, for one question and for a file."""

import json
import shutil
import signal
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import tiny

from dmole_cli.artifacts.evaluation import read_evaluation
from dmole_cli.artifacts.run import Run

TASKS = ("colours", "halves", "brightness")  # the last one was never trained


@pytest.fixture(scope="module")
def evaluated(finished) -> list[dict]:
    """Every test sample with what its evaluation after the last task has found."""
    rows = []
    for task in TASKS:
        answers, _ = read_evaluation(Run(finished / "dmole-run").evaluation("d-mole", 2, task))
        rows += [{"task": task, **vars(answer)} for answer in answers]
    return rows


@pytest.fixture(scope="module")
def asked(finished, evaluated, tmp_path_factory) -> Path:
    """The finished stream with a file of all test questions, in mixed order."""
    folder = shutil.copytree(finished, tmp_path_factory.mktemp("answer") / "stream")
    rows = [
        {"key": index, "question": row["question"], "image": f"tasks/{row['task']}/pictures/{row['images'][0]}"}
        for index, row in enumerate(evaluated)
    ]
    rows = rows[::2] + rows[1::2]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def answers_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def check(found: dict, expected: dict) -> None:
    assert found["answer"] == expected["prediction"]
    assert found["experts"] == expected["active"] and found["recognised"] == bool(expected["active"])
    assert list(found["losses"].values()) == pytest.approx(expected["losses"], rel=1e-4)


def test_a_file_gets_the_answers_of_the_evaluation(run, asked, evaluated):
    command = ("answer", "--file", "questions.jsonl", "--max-new-tokens", 4, "--batch-size", 7)
    done = run(*command, "--out", "answers.jsonl", cwd=asked)
    assert done.returncode == 0, done.stderr
    questions, found = answers_of(asked / "questions.jsonl"), answers_of(asked / "answers.jsonl")
    assert [{key: row[key] for key in ("key", "question", "image")} for row in found] == questions
    for row in found:
        check(row, evaluated[row["key"]])
        assert list(row["thresholds"]) == ["colours", "halves"]
    unknown = sum(not row["experts"] for row in found)
    assert 0 < unknown < len(found) and f"({len(found)} answers, {unknown} without an expert)" in done.stderr
    # As a table, with the same answers.
    done = run(*command, "--out", "answers.parquet", cwd=asked)
    assert done.returncode == 0, done.stderr
    rows = pq.read_table(asked / "answers.parquet").to_pylist()
    assert [row["answer"] for row in rows] == [row["answer"] for row in found]
    assert [json.loads(row["losses"]) for row in rows] == [row["losses"] for row in found]


def test_what_was_answered_before_a_kill_is_kept(run, asked, tmp_path):
    command = ("answer", "--file", "questions.jsonl", "--max-new-tokens", 4, "--batch-size", 6, "--run", "killed")
    shutil.copytree(asked / "dmole-run", asked / "killed", ignore=shutil.ignore_patterns("cache"))
    batches = tmp_path / "batches"
    batches.touch()
    killed = run(*command, "--out", "late.jsonl", cwd=asked, batches=batches, kill_at=3)
    assert killed.returncode == -signal.SIGKILL and not (asked / "late.jsonl").exists()
    done = run(*command, "--out", "late.jsonl", cwd=asked, batches=batches)
    assert done.returncode == 0, done.stderr
    assert len(answers_of(asked / "late.jsonl")) == 30
    assert batches.stat().st_size == 6, "five batches, and the one in progress again"


def test_answers_of_before_a_change_of_an_image_are_not_kept(run, asked, tmp_path):
    command = ("answer", "--file", "changing.jsonl", "--max-new-tokens", 4, "--batch-size", 6, "--run", "changed")
    shutil.copytree(asked / "dmole-run", asked / "changed", ignore=shutil.ignore_patterns("cache"))
    rows = [row | {"image": f"own/{row['key']}.png"} for row in answers_of(asked / "questions.jsonl")]
    (asked / "own").mkdir()
    for row, old in zip(rows, answers_of(asked / "questions.jsonl"), strict=True):
        shutil.copy(asked / old["image"], asked / row["image"])
    (asked / "changing.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    batches = tmp_path / "batches"
    batches.touch()
    killed = run(*command, "--out", "changed.jsonl", cwd=asked, batches=batches, kill_at=3)
    assert killed.returncode == -signal.SIGKILL
    shutil.copy(asked / rows[0]["image"], asked / rows[1]["image"])
    done = run(*command, "--out", "changed.jsonl", cwd=asked, batches=batches)
    assert done.returncode == 0, done.stderr
    assert batches.stat().st_size == 3 + 5, "all batches again"


def test_one_question(run, asked, evaluated):
    expected = next(row for row in evaluated if row["task"] == "halves" and row["active"] == ["halves"])
    image = f"tasks/halves/pictures/{expected['images'][0]}"
    done = run("answer", "--image", image, expected["question"], cwd=asked)
    assert (done.returncode, done.stdout) == (0, f"{expected['prediction']}\n")
    check(json.loads(run("answer", "--image", image, expected["question"], "--json", cwd=asked).stdout), expected)
    # A baseline without routers.
    done = run("answer", "--method", "seq-ft", "--image", image, expected["question"], "--json", cwd=asked)
    assert json.loads(done.stdout)["experts"] == ["halves"] and json.loads(done.stdout)["losses"] == {}
    refused = run("answer", "--method", "finetune", "x", cwd=asked)
    assert refused.returncode == 1 and "has a model for each task" in refused.stderr


def test_routing_without_effect_is_refused(run, asked):
    refused = run("answer", "--method", "seq-ft", "--routing", "top-1", "x", cwd=asked)
    assert refused.returncode == 1 and "method seq-ft has no routers" in refused.stderr
    refused = run("answer", "--routing", "oracle", "x", cwd=asked)
    assert refused.returncode == 1 and "routing oracle needs the task of each sample" in refused.stderr


def test_mistakes(run, asked):
    for words in ((), ("--file", "questions.jsonl"), ("x", "--file", "q.jsonl", "--out", "a.jsonl")):
        refused = run("answer", *words, cwd=asked)
        assert refused.returncode == 2 and "pass a QUESTION with its --image, or --file with --out" in refused.stderr
    missing = run("answer", "--image", "missing.png", "What?", cwd=asked)
    assert missing.returncode == 1 and "missing.png" in missing.stderr
    rows = {
        '{"image": "x.png"}': "`question` is missing",
        '{"question": "x", "image": 3}': "`image` must be a path",
        '{"question": "x", "answer": "y"}': "the key `answer`",
        "[1]": "expected a JSON object",
        "{": "line 1",
        "": "has no rows",
    }
    for line, message in rows.items():
        (asked / "wrong.jsonl").write_text(f"{line}\n", encoding="utf-8")
        refused = run("answer", "--file", "wrong.jsonl", "--out", "a.jsonl", cwd=asked)
        assert refused.returncode == 1 and message in refused.stderr, refused.stderr
    refused = run("answer", "--file", "wrong.csv", "--out", "a.jsonl", cwd=asked)
    assert refused.returncode == 1 and ".jsonl or .parquet" in refused.stderr


def test_a_stale_expert_is_refused(run, copy):
    tiny.succeed("allocate", "--budget", "50%", "--force", cwd=copy, run=run)
    refused = run("answer", "What?", cwd=copy)
    assert refused.returncode == 1 and "is stale" in refused.stderr and "dmole train-task" in refused.stderr
