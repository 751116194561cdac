"""`rescore`: stored predictions scored by another metric, in a folder of their own, without model or data."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import tiny

from dmole_cli.artifacts.evaluation import Answer, read_evaluation, write_evaluation
from dmole_cli.artifacts.files import digest_of_file
from dmole_cli.artifacts.kinds import EVALUATION
from dmole_cli.artifacts.provenance import Header
from dmole_cli.artifacts.run import Run
from dmole_cli.metrics import anls, bleu1

FIRST, SECOND = tiny.TASKS


@pytest.fixture
def bare(finished, tmp_path) -> Path:
    """Evaluations and the configuration of a finished sequence: no backbone, no task data, no cards, no experts."""
    shutil.copytree(finished / "dmole-run" / "evaluations", tmp_path / "dmole-run" / "evaluations")
    shutil.copy(finished / "dmole.toml", tmp_path)
    return tmp_path


def rows_of(path: Path) -> list[dict]:
    return pq.read_table(path).to_pylist()


def header_of(path: Path) -> dict:
    return json.loads(pq.read_schema(path).metadata[b"dmole"])


def rescored(folder: Path, metric: str, method: str, stage: int, task: str) -> Path:
    return folder / f"dmole-run/rescored/{metric}/evaluations/{method}/{stage}/{task}.parquet"


def refused(run, *args: object, cwd: Path, code: int = 1) -> str:
    done = run(*args, cwd=cwd)
    assert done.returncode == code and "Traceback" not in done.stderr, done.stderr
    return done.stderr


def test_all_evaluations_are_rescored_and_nothing_else_changes(bare, run):
    before = tiny.files_of(bare)
    outcomes = json.loads(tiny.succeed("rescore", "anls", "--json", cwd=bare, run=run).stdout)
    originals = sorted((bare / "dmole-run/evaluations").rglob("*.parquet"))
    assert len(outcomes) == len(originals) > 10 and all(entry["written"] for entry in outcomes)
    after = tiny.files_of(bare)
    assert {name: after[name] for name in before} == before
    for path in originals:
        method, stage, task = path.parts[-3], int(path.parts[-2]), path.stem
        made = rescored(bare, "anls", method, stage, task)
        old, new = rows_of(path), rows_of(made)
        scores = anls.score(
            [row["prediction"] for row in old], references=[row["references"] for row in old], details=[{}] * len(old)
        )
        assert [row.pop("score") for row in new] == scores
        assert new == [{key: value for key, value in row.items() if key != "score"} for row in old]
        header, source = header_of(made), header_of(path)
        name = f"evaluations/{method}/{stage}/{task}.parquet"
        assert header["inputs"] == {**source["inputs"], name: digest_of_file(path)}
        assert header["settings"] == {**source["settings"], "metric": "anls"}
        assert header["backbone"] == source["backbone"]
    again = json.loads(tiny.succeed("rescore", "anls", "--json", cwd=bare, run=run).stdout)
    assert not any(entry["written"] for entry in again)
    tiny.succeed("rescore", "anls", "--force", cwd=bare, run=run)
    assert tiny.files_of(bare) == after, "the same bytes"


def test_rescoring_needs_neither_model_nor_torch(bare):
    program = (
        "import sys; from dmole_cli.commands.app import main\n"
        "for words in ('rescore anls --task colours', 'report last --rescored anls'):\n"
        "    sys.argv = ['dmole', *words.split()]\n"
        "    try:\n        main()\n    except SystemExit as end:\n        assert not end.code, end.code\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=bare, env=tiny.environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("[]")
    assert "anls" in done.stdout
    assert not (bare / "backbone").exists() and not (bare / "tasks").exists()


def test_only_the_chosen_evaluations(bare, run):
    args = ("rescore", "gqa", "--method", "d-mole", "--stage", "2", "--stage", "diagonal", "--task", FIRST)
    outcomes = json.loads(tiny.succeed(*args, "--json", cwd=bare, run=run).stdout)
    assert [(entry["task"], entry["at_stage"]) for entry in outcomes] == [(FIRST, 1), (FIRST, 2)]
    made = sorted((bare / "dmole-run/rescored").rglob("*.parquet"))
    assert made == [rescored(bare, "gqa", "d-mole", stage, FIRST) for stage in (1, 2)]


def test_the_report_shows_new_scores_in_place_of_the_original_ones(bare, run):
    def last(*args: object) -> dict[str, dict]:
        shown = tiny.succeed("report", "last", "--json", *args, cwd=bare, run=run).stdout
        return {report["method"]: report for report in json.loads(shown)}

    before = last()
    # coin_imagenet counts parts: never less than exact match on these one-letter answers.
    tiny.succeed("rescore", "coin_imagenet", "--task", FIRST, cwd=bare, run=run)
    assert last() == before
    after = last("--rescored", "coin_imagenet")
    assert after.keys() == before.keys()
    for method, report in after.items():
        assert report["tasks"][FIRST]["metric"] == "coin_imagenet"
        assert report["tasks"][SECOND] == before[method]["tasks"][SECOND]
        assert report["routing"] == before[method]["routing"]
        if method != "finetune":
            scores = [row["score"] for row in rows_of(rescored(bare, "coin_imagenet", method, 2, FIRST))]
            assert report["tasks"][FIRST]["last"] == pytest.approx(100 * sum(scores) / len(scores))
    # Two metrics for two tasks may share a table; two for the same task may not.
    tiny.succeed("rescore", "gqa", "--task", SECOND, cwd=bare, run=run)
    both = last("--rescored", "coin_imagenet", "--rescored", "gqa")["d-mole"]["tasks"]
    assert [both[task]["metric"] for task in tiny.TASKS] == ["coin_imagenet", "gqa"]
    tiny.succeed("rescore", "gqa", "--task", FIRST, cwd=bare, run=run)
    args = ("report", "last", "--rescored", "coin_imagenet", "--rescored", "gqa")
    assert "score the same answers" in refused(run, *args, cwd=bare)


def test_a_report_of_scores_by_two_metrics_is_refused(bare, run):
    tiny.succeed("rescore", "gqa", "--task", FIRST, "--stage", "2", cwd=bare, run=run)
    error = refused(run, "report", "last", "--rescored", "gqa", cwd=bare)
    assert "scored with" in error and f"dmole rescore gqa --task {FIRST}" in error


def test_a_changed_evaluation_makes_its_rescored_one_stale(bare, run):
    args = ("rescore", "gqa", "--task", FIRST, "--stage", "2", "--method", "d-mole")
    tiny.succeed(*args, cwd=bare, run=run)
    path = bare / f"dmole-run/evaluations/d-mole/2/{FIRST}.parquet"
    rows, header = read_evaluation(path)
    write_evaluation(path, [replace(rows[0], prediction="another"), *rows[1:]], header)
    error = refused(run, *args, cwd=bare)
    assert (
        f"evaluations/d-mole/2/{FIRST}.parquet has changed" in error
        and f"run: dmole rescore gqa --task {FIRST} --method d-mole --stage 2 --force" in error
    )
    tiny.succeed(*args, "--force", cwd=bare, run=run)
    assert read_evaluation(rescored(bare, "gqa", "d-mole", 2, FIRST))[0][0].prediction == "another"


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["rescore", "luck"], ["unknown metric 'luck'", "anls", "vqa_accuracy"]),
        (["rescore", "grounding"], ["needs box, height, width", "--task"]),
        (["rescore", "anls", "--task", "nothing"], ["no such evaluation", "task nothing"]),
        (
            ["rescore", "anls", "--method", "replay"],
            ["no such evaluation", "method replay", "d-mole, finetune, seq-ft"],
        ),
        (["rescore", "anls", "--split", "validation"], ["no such evaluation", "evaluations.validation"]),
        (["report", "last", "--rescored", "anls"], ["no evaluation was scored again by anls", "dmole rescore anls"]),
    ],
)
def test_invalid_arguments(bare, run, args, parts):
    error = refused(run, *args, cwd=bare)
    assert all(part in error for part in parts), error
    assert not (bare / "dmole-run" / "rescored").exists()


def test_options_of_inference_are_unknown(bare, run):
    for extra in (["--likelihood"], ["--routing", "oracle"], ["--threshold-scale", "0.8"]):
        assert extra[0] in refused(run, "rescore", "anls", *extra, cwd=bare, code=2)


def put(folder: Path, task: str, answers: list[str], references: list[str], detail: dict, metric: str) -> None:
    rows = [
        Answer(str(i), "what?", answer, [reference], 0.0, [], [], json.dumps(detail))
        for i, (answer, reference) in enumerate(zip(answers, references, strict=True))
    ]
    header = Header.of(EVALUATION, backbone="b", settings={"metric": metric, "learned": list(tiny.TASKS)})
    write_evaluation(Run(folder / "dmole-run").evaluation("d-mole@oracle", 2, task), rows, header)


def test_another_routing_and_the_score_of_a_whole_corpus(bare, run):
    """BLEU of a corpus is not the mean; the header has it, and the report shows it."""
    shutil.rmtree(bare / "dmole-run")
    answers, references = ["a dog on a sofa", "red bike"], ["a dog sleeps on a sofa", "one red bike\u2028here"]
    put(bare, FIRST, answers, references, {}, "cider")
    tiny.succeed("rescore", "bleu1", "--method", "d-mole@oracle", cwd=bare, run=run)
    path = rescored(bare, "bleu1", "d-mole@oracle", 2, FIRST)
    samples, corpus = bleu1.score_corpus(answers, references=[[r] for r in references], details=[{}] * 2)
    assert [row["score"] for row in rows_of(path)] == samples
    assert header_of(path)["facts"] == {"corpus": corpus} and corpus != pytest.approx(sum(samples) / 2)
    shown = tiny.succeed("report", "last", "--rescored", "bleu1", "--json", cwd=bare, run=run).stdout
    [report] = json.loads(shown)
    assert report["method"] == "d-mole@oracle" and report["tasks"][FIRST]["last"] == pytest.approx(100 * corpus)


def test_the_mean_iou_is_reported_beside_the_accuracy(bare, run):
    shutil.rmtree(bare / "dmole-run")
    detail = {"box": [100, 50, 300, 150], "width": 1000, "height": 500}
    put(bare, FIRST, ["[100, 100, 300, 300]", "[100, 100, 150, 300]", ""], ["x"] * 3, detail, "exact_match")
    tiny.succeed("rescore", "grounding", cwd=bare, run=run)
    [plain] = json.loads(tiny.succeed("report", "last", "--json", cwd=bare, run=run).stdout)
    assert plain["further"] == {}
    args = ("report", "overview", "--rescored", "grounding")
    [report] = json.loads(tiny.succeed(*args, "--json", cwd=bare, run=run).stdout)
    beside = report["further"][FIRST]["mean_iou"]
    # 1, a quarter and nothing.
    assert beside["last"] == pytest.approx(125 / 3) and beside["avg"] is None
    table = tiny.succeed(*args, cwd=bare, run=run).stdout
    assert "mean iou" in table and "41.7" in table and "Beside the score" in table
