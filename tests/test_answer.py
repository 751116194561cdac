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


@pytest.fixture(scope="module")
def encoded(backbone, finished) -> list:
    """Questions of several lengths, with images."""
    from dmole_cli.stages.answer import question

    folder = finished / "tasks" / "colours" / "pictures"
    texts = ["Which?", "What colour is the image, and why?", "Is it red or is it blue? Answer with one word."] * 3
    paths = sorted(folder.iterdir())[: len(texts)]
    samples = [question(text, [path]) for text, path in zip(texts, paths, strict=True)]
    return [backbone.encode(sample, with_answer=False) for sample in samples]


def test_quick_features_agree_to_rounding(backbone, encoded):
    exact, quick = backbone.features(encoded), backbone.features(encoded, exact=False)
    assert len(encoded) == 9 and (quick - exact).abs().max() < 1e-6
    for sample, row in zip(encoded, exact, strict=True):
        assert (backbone.features([sample], exact=False)[0] - row).abs().max() < 1e-6


def test_what_follows_is_seen_by_a_model_that_is_not_causal():
    import torch

    from dmole_cli.backbones.pooling import is_causal

    def causal(tokens: torch.Tensor) -> torch.Tensor:
        return tokens.cumsum(dim=1)[..., None].float()

    def bidirectional(tokens: torch.Tensor) -> torch.Tensor:
        return causal(tokens) + tokens.sum(dim=1)[:, None, None]

    tokens = torch.tensor([3, 1, 2])
    assert is_causal(causal, tokens) and not is_causal(bidirectional, tokens)


def test_a_route_near_a_threshold_is_computed_as_an_evaluation_does(encoded, finished, monkeypatch):
    from dmole_cli.cli.workspace import open_workspace
    from dmole_cli.inference.answering import _is_close
    from dmole_cli.settings.model import Settings
    from dmole_cli.stages.answer import answering

    assert _is_close([0.1, 0.5], [0.10005, 0.2]) and _is_close([0.1, 0.10001], [0.2, 0.2])
    assert not _is_close([0.1, 0.5, 0.12], [0.2, 0.2, 0.2])
    monkeypatch.chdir(finished)
    values = {"run_directory": Path("dmole-run"), "config": Path("dmole.toml")}
    work = open_workspace(values, {}, model=Settings, typed={})
    with answering(**work.parts) as opened:
        counts = opened.backbone.counts
        for sample, losses in zip(encoded, opened.losses(encoded, exact=True).tolist(), strict=True):
            for factor, accepted, passes in ((1 - 1e-5, 0, 2), (1 + 1e-5, 2, 2), (0.5, 0, 1)):
                opened.thresholds = {n: factor * loss for n, loss in zip(opened.thresholds, losses, strict=True)}
                before = counts["feature_passes"]
                assert len(opened.route([sample])[0][0]) == accepted
                assert counts["feature_passes"] - before == passes


def test_answers_of_one_batch_have_lengths_of_their_own(backbone, encoded):
    from dmole_cli.inference.decoding import generate_tokens

    longest, shortest = [3, 9, 1, 6, 9, 2, 4, 9, 5], [0, 9, 0, 3, 0, 2, 0, 7, 1]

    def tokens(rows: list[int]) -> list[list[int]]:
        inputs, _ = backbone.collate([encoded[row] for row in rows], left=True)
        return generate_tokens(backbone, inputs, [longest[r] for r in rows], [shortest[r] for r in rows])

    together = tokens(list(range(9)))
    assert together == [tokens([row])[0] for row in range(9)]
    assert all(least <= len(row) <= most for row, least, most in zip(together, shortest, longest, strict=True))
    assert len({len(row) for row in together}) > 3
