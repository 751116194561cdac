"""Reports from real evaluation files, against values computed by hand."""

import json
import subprocess
import sys
from collections.abc import Sequence
from io import StringIO
from pathlib import Path

import pytest
import tiny
import torch
from rich.console import Console

from dmole_cli.artifacts.errors import StaleArtifact
from dmole_cli.artifacts.evaluation import Answer, write_evaluation
from dmole_cli.artifacts.expert import ExpertFile, write_expert
from dmole_cli.artifacts.files import digest_of_file, write_json
from dmole_cli.artifacts.kinds import D_MOLE, EVALUATION, EXPERT, LIKELIHOOD, ROUTER
from dmole_cli.artifacts.likelihood import Likelihood, write_likelihood
from dmole_cli.artifacts.memory import write_memory
from dmole_cli.artifacts.provenance import Header
from dmole_cli.artifacts.run import Run
from dmole_cli.artifacts.tensors import write_tensors
from dmole_cli.errors import DmoleError
from dmole_cli.reports.collect import MethodReport, as_json, collect
from dmole_cli.reports.continual import FORMULAS
from dmole_cli.reports.costs import cost_rows, profiling_share
from dmole_cli.reports.evaluations import method_of, methods_on_disk
from dmole_cli.reports.layout import Grid, show
from dmole_cli.reports.tables import (
    MISSING,
    cost_table,
    for_report,
    knowledge_table,
    matrix_table,
    nats,
    overview_table,
    points,
    report_table,
    routing_table,
)

TASKS = ("shapes", "captions")
METRICS = {"shapes": "exact_match", "captions": "cider", "counting": "exact_match"}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "dmole-run")


def refused(run: Run) -> str:
    """What `dmole report` says about the files of a run that it refuses."""
    done = tiny.dmole("report", cwd=run.root.parent)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    return done.stderr


def learned(method: str, stage: int, task: str, stream: Sequence[str] = TASKS) -> list[str]:
    """What the header of a file says."""
    return method_of(method).learned(stream, stage, task)


def put(
    run: Run,
    method: str,
    stage: int,
    task: str,
    scores: Sequence[float],
    *,
    active: Sequence[Sequence[str]] = (),
    metric: str | None = None,
    backbone: str = "b",
    inputs: Sequence[str] = (),
    stream: Sequence[str] = TASKS,
) -> None:
    """Write an evaluation file; samples are routed (have losses) where `active` is given."""
    rows = [
        Answer(
            sample_id=str(index),
            question="what?",
            prediction="",
            references=["x"],
            score=score,
            active=list(active[index]) if active else [],
            losses=[0.5] * stage if active else [],
            details="{}",
            images=[f"{index}.png"],
        )
        for index, score in enumerate(scores)
    ]
    settings = {"metric": metric or METRICS[task], "learned": learned(method, stage, task, stream)}
    read = {name: digest_of_file(run.path_of(name)) if run.path_of(name).is_file() else "digest" for name in inputs}
    header = Header.of(EVALUATION, backbone=backbone, settings=settings, inputs=read)
    write_evaluation(run.evaluation(method, stage, task), rows, header)


def put_likelihood(
    run: Run,
    method: str,
    stage: int,
    task: str,
    means: Sequence[float],
    *,
    ranked: Sequence[bool] | None = None,
    backbone: str = "b",
    stream: Sequence[str] = TASKS,
) -> None:
    """Write a file of likelihoods; `ranked` where the task's set of answers is closed."""
    rows = [
        Likelihood(str(index), mean, None if ranked is None else ranked[index], []) for index, mean in enumerate(means)
    ]
    header = Header.of(LIKELIHOOD, backbone=backbone, settings={"learned": learned(method, stage, task, stream)})
    write_likelihood(run.likelihood(method, stage, task), rows, header)


def put_expert(run: Run, method: str, task: str, *, width: int, inputs: Sequence[str] = ()) -> None:
    header = Header.of(EXPERT, backbone="b", inputs=dict.fromkeys(inputs, "digest"))
    sites = {"layer": (torch.zeros(2, width), torch.zeros(3, 2))}
    write_expert(run.expert(task, method), ExpertFile(sites, 2.0, header))


def fill(run: Run, method: str) -> None:
    """Rows of points: (10, 80), (90, 130), (60, 150); the second task's metric is CIDEr."""
    put(run, method, 0, "shapes", [0.1] * 10)
    put(run, method, 0, "captions", [0.6, 1.0])
    put(run, method, 1, "shapes", [1.0] * 9 + [0.0])
    put(run, method, 1, "captions", [1.3, 1.3])
    put(run, method, 2, "shapes", [1.0, 1.0, 1.0, 0.0, 0.0])
    put(run, method, 2, "captions", [1.0, 2.0])


def only(reports: list[MethodReport]) -> MethodReport:
    (report,) = reports
    return report


def close(expected: object) -> object:
    return pytest.approx(expected, nan_ok=False, abs=1e-9)


def text_of(table: Grid, *, width: int = 100) -> str:
    console = Console(file=StringIO(), width=width, color_system=None)
    console.print(table)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_scores_become_points_and_quantities(run: Run) -> None:
    fill(run, "seq-ft")
    report = only(collect(run, tasks=TASKS))
    assert report.method == "seq-ft"
    assert report.stages == (0, 1, 2)
    assert [list(row) for row in report.matrix] == [close([10, 80]), close([90, 130]), close([60, 150])]
    # CIDEr is shown as it is: Last 150, AVG (130 + 150) / 2.
    assert report.quantities["last"] == close((60, 150))
    assert report.quantities["avg"] == close((75, 140))
    assert report.quantities["bwt"] == close((-30, 0))
    assert report.quantities["forgetting"] == close((30, 0))
    assert report.quantities["fwt"] == close((0, 50))


def test_the_mean_caps_every_score_at_100_and_no_difference(run: Run) -> None:
    fill(run, "seq-ft")
    report = only(collect(run, tasks=TASKS))
    # Captions count as 80, 100, 100: Last (60 + 100) / 2, AVG (75 + 100) / 2; their FWT is 130 - 80.
    expected = {"last": 80, "avg": 87.5, "bwt": -30, "forgetting": 30, "fwt": 50}
    # MFT (90 + 100) / 2; MAA: 90 after the first task, (60 + 100) / 2 after the second.
    assert report.mean == close(expected | {"mft": 95, "mfn": 80, "maa": 85})
    uncapped = {"last": 105, "avg": 107.5, "bwt": -30, "forgetting": 30, "fwt": 50}
    assert report.mean_uncapped == close(uncapped | {"mft": 120, "mfn": 105, "maa": 97.5})
    # Only captions can have a FWT here, so without them there is none.
    bounded = {"last": 60, "avg": 75, "bwt": -30, "forgetting": 30, "fwt": None}
    assert report.mean_of_bounded == close(bounded | {"mft": 90, "mfn": 60, "maa": 75})


def test_what_is_lost_above_the_cap_counts_in_bwt_and_forgetting(run: Run) -> None:
    tasks = ("captions", "shapes")
    for stage, score in enumerate([0.5, 1.4, 1.01]):
        put(run, "seq-ft", stage, "captions", [score], stream=tasks)
        put(run, "seq-ft", stage, "shapes", [0.5], stream=tasks)
    report = only(collect(run, tasks=tasks))
    assert report.quantities["bwt"][0] == report.mean["bwt"] == report.mean_uncapped["bwt"] == close(-39)
    assert report.mean["forgetting"] == close(39)
    assert report.mean_of_bounded["bwt"] is None
    (entry,) = as_json([report])
    assert (entry["mean"]["last"], entry["mean_uncapped"]["last"]) == close((75, 75.5))
    for name in ("last", "bwt", "overview", "means"):
        shown = text_of(for_report([report], name)[-1 if name == "means" else 0])
        assert "uncapped" in shown and ("75.5" in shown or "-39.0" in shown), shown


def test_missing_entries_stay_missing_and_are_null_in_json(run: Run) -> None:
    fill(run, "seq-ft")
    run.evaluation("seq-ft", 2, "shapes").unlink()
    (entry,) = json.loads(json.dumps(as_json(collect(run, tasks=TASKS)), allow_nan=False))
    assert list(entry)[:3] == ["method", "stages", "tasks"]
    assert entry["tasks"]["shapes"] == {
        "last": None,
        "avg": None,
        "bwt": None,
        "forgetting": None,
        "fwt": close(0),
        "metric": "exact_match",
    }
    assert entry["tasks"]["captions"]["last"] == close(150)
    missing = dict.fromkeys(("last", "avg", "bwt", "forgetting", "mfn", "maa"))
    assert entry["mean"] == missing | {"fwt": close(50), "mft": close(95)}
    assert entry["trainable_parameters"] is None
    assert entry["routing"] == {"shapes": None, "captions": None}


def test_zero_shot_is_the_backbone_at_every_stage(run: Run) -> None:
    put(run, "zero-shot", 0, "shapes", [0.25])
    put(run, "zero-shot", 0, "captions", [0.5])
    report = only(collect(run, tasks=TASKS))
    assert report.stages == (0,)
    assert report.quantities["last"] == report.quantities["avg"] == close((25, 50))
    for name in ("bwt", "forgetting", "fwt"):
        assert report.quantities[name] == close((0, 0))
    same = dict.fromkeys(("last", "avg", "mft", "mfn"), 37.5)
    assert report.mean == close(same | {"bwt": 0, "forgetting": 0, "fwt": 0, "maa": (25 + 37.5) / 2})
    assert report.trainable_parameters == 0


def test_finetune_has_the_score_of_each_task_alone_and_nothing_else(run: Run) -> None:
    put(run, "zero-shot", 0, "shapes", [0.25])
    put(run, "finetune", 1, "shapes", [0.75])
    put(run, "finetune", 2, "captions", [1.5])
    report = collect(run, tasks=TASKS)[1]
    assert report.method == "finetune"
    assert report.stages == (1, 2)
    assert report.quantities["last"] == close((75, 150))
    defined = dict.fromkeys(("last", "mft", "mfn"), close(87.5))
    assert report.mean == dict.fromkeys(("avg", "bwt", "forgetting", "fwt", "maa")) | defined
    for name in set(FORMULAS) - {"last"}:
        assert report.quantities[name] == (None, None)


def test_the_backbone_row_is_taken_from_zero_shot_where_a_method_has_none(run: Run) -> None:
    fill(run, "seq-ft")
    run.evaluation("seq-ft", 0, "captions").unlink()
    put(run, "zero-shot", 0, "captions", [0.7])
    report = collect(run, tasks=TASKS)[1]
    assert report.matrix[0][1] == close(70)
    assert report.quantities["fwt"][1] == close(60)


def test_routing_and_never_trained_tasks(run: Run) -> None:
    fill(run, D_MOLE)
    put(run, D_MOLE, 2, "shapes", [1, 0, 1, 1], active=[["shapes"], ["captions", "shapes"], ["captions"], []])
    put(run, D_MOLE, 0, "counting", [1, 0])
    put(run, D_MOLE, 1, "counting", [0, 0])
    put(run, D_MOLE, 2, "counting", [1, 1, 0, 1], active=[[], [], ["shapes"], []])
    report = only(collect(run, tasks=TASKS))
    assert report.routing == {"shapes": 0.5, "captions": None}
    assert report.unseen == {"counting": {"zero_shot": 50, "last": 75, "no_expert": 0.75}}
    assert report.tasks == TASKS
    (entry,) = as_json([report])
    assert "counting" not in entry["tasks"]
    assert entry["unseen"]["counting"]["no_expert"] == 0.75


def test_an_unrouted_method_has_no_share_without_expert(run: Run) -> None:
    put(run, "zero-shot", 0, "counting", [1, 0])
    put(run, "seq-ft", 2, "counting", [0, 0])
    zero_shot, seq_ft = collect(run, tasks=TASKS)
    assert zero_shot.unseen == {"counting": {"zero_shot": 50, "last": 50, "no_expert": None}}
    assert seq_ft.unseen == {"counting": {"zero_shot": 50, "last": 0, "no_expert": None}}


def put_knowledge(run: Run, method: str) -> None:
    """Likelihoods: of shapes with ranks, of captions without; those of shapes are lower at the end."""
    put_likelihood(run, method, 1, "shapes", [-0.1, -0.3, -0.2, -0.2], ranked=[True] * 4)
    put_likelihood(run, method, 2, "shapes", [-2.0, -1.0, -1.0, -2.0], ranked=[True, True, True, False])
    put_likelihood(run, method, 2, "captions", [-1.0, -2.0])


def test_knowledge_is_reported_separately_from_scores(run: Run) -> None:
    fill(run, "seq-ft")
    put_knowledge(run, "seq-ft")
    report = only(collect(run, tasks=TASKS))
    assert report.quantities["bwt"][0] == close(-30)
    assert report.knowledge["shapes"] == close(
        {
            "log_likelihood_learnt": -0.2,
            "log_likelihood_last": -1.5,
            "likelihood_forgetting": 1.3,
            "ranked_first_learnt": 100,
            "ranked_first_last": 75,
            "ranked_forgetting": 25,
        }
    )
    assert report.knowledge["captions"] == close(
        {
            "log_likelihood_learnt": -1.5,
            "log_likelihood_last": -1.5,
            "likelihood_forgetting": 0,
            "ranked_first_learnt": None,
            "ranked_first_last": None,
            "ranked_forgetting": None,
        }
    )
    shown = text_of(knowledge_table([report]))
    (row,) = [line.split() for line in shown.splitlines() if "shapes" in line]
    assert row == ["seq-ft", "shapes", "-30.0", "100.0", "75.0", "-25.0", "-0.200", "-1.500", "-1.300"]
    (row,) = [line.split() for line in shown.splitlines() if "captions" in line]
    assert row == ["captions", "0.0", MISSING, MISSING, MISSING, "-1.500", "-1.500", "0.000"]
    assert "its end included, per token" in " ".join(shown.split())


def test_knowledge_that_was_not_measured_stays_missing(run: Run) -> None:
    fill(run, "seq-ft")
    put_knowledge(run, "seq-ft")
    run.likelihood("seq-ft", 2, "shapes").unlink()
    put(run, "ewc-lora", 2, "shapes", [1])
    entries = json.loads(json.dumps(as_json(collect(run, tasks=TASKS)), allow_nan=False))
    ewc, seq_ft = entries
    assert seq_ft["knowledge"]["shapes"] == {
        "log_likelihood_learnt": close(-0.2),
        "log_likelihood_last": None,
        "likelihood_forgetting": None,
        "ranked_first_learnt": close(100),
        "ranked_first_last": None,
        "ranked_forgetting": None,
    }
    assert set(ewc["knowledge"]["shapes"].values()) == {None}
    shown = text_of(for_report(collect(run, tasks=TASKS), "knowledge")[0])
    assert [line.split() for line in shown.splitlines() if "ewc-lora" in line] == [
        ["ewc-lora", "shapes", *[MISSING] * 7]
    ]


def test_knowledge_of_the_backbone_and_of_each_task_alone(run: Run) -> None:
    put_likelihood(run, "zero-shot", 0, "shapes", [-1.0], ranked=[False])
    put(run, "zero-shot", 0, "shapes", [0])
    put_likelihood(run, "finetune", 1, "shapes", [-0.5], ranked=[True])
    put(run, "finetune", 1, "shapes", [1])
    put_likelihood(run, "finetune", 2, "captions", [-0.7])
    zero_shot, finetune = (report.knowledge for report in collect(run, tasks=TASKS))
    assert zero_shot["shapes"]["log_likelihood_learnt"] == zero_shot["shapes"]["log_likelihood_last"] == -1.0
    assert zero_shot["shapes"]["ranked_forgetting"] == 0
    assert finetune["shapes"]["ranked_first_learnt"] == 100
    for task, learnt in (("shapes", -0.5), ("captions", -0.7)):
        assert finetune[task]["log_likelihood_learnt"] == learnt
        assert finetune[task]["log_likelihood_last"] is finetune[task]["likelihood_forgetting"] is None


def test_unusable_likelihoods_are_named(run: Run) -> None:
    put(run, "seq-ft", 1, "shapes", [1])
    put_likelihood(run, "seq-ft", 1, "shapes", [])
    with pytest.raises(DmoleError, match=r"likelihoods.*shapes\.parquet holds no sample"):
        collect(run, tasks=TASKS)
    assert "run: dmole evaluate --task shapes --method seq-ft --stage 1 --likelihood --force" in refused(run)
    put_likelihood(run, "seq-ft", 1, "shapes", [-1.0], backbone="another")
    with pytest.raises(DmoleError, match="two backbones"):
        collect(run, tasks=TASKS)


def test_order_of_methods(run: Run) -> None:
    for method in (D_MOLE, "seq-ft", "ewc-lora", "joint", "finetune", "zero-shot"):
        put(run, method, 0, "shapes", [1])
    assert methods_on_disk(run) == ["zero-shot", "finetune", "joint", "ewc-lora", "seq-ft", D_MOLE]
    assert [report.method for report in collect(run, tasks=TASKS, methods=["seq-ft", "joint"])] == ["seq-ft", "joint"]


def test_a_method_whose_file_is_gone_is_reported_as_a_sequential_one(run: Run) -> None:
    fill(run, "long-gone")
    fill(run, "seq-ft")
    put(run, f"{D_MOLE}@oracle", 0, "shapes", [1])
    put(run, D_MOLE, 0, "shapes", [1])
    assert methods_on_disk(run) == ["d-mole@oracle", "long-gone", "seq-ft", D_MOLE]
    gone, seq_ft = (only(collect(run, tasks=TASKS, methods=[name])) for name in ("long-gone", "seq-ft"))
    assert (gone.matrix, gone.quantities, gone.mean) == (seq_ft.matrix, seq_ft.quantities, seq_ft.mean)


def test_a_new_method_is_reported_by_its_protocol(run: Run, shelf) -> None:
    text = "from dmole_cli.methods.base import Method\nclass Mine(Method):\n    paper = 'p'\n    protocol = '{}'\n"
    name = shelf(text.format("per-task"))
    put(run, "zero-shot", 0, "shapes", [0.25])
    for method in (name, "finetune"):
        put(run, method, 1, "shapes", [0.75])
        put(run, method, 2, "captions", [1.5])
    assert methods_on_disk(run) == ["zero-shot", "finetune", name]
    mine, finetune = (only(collect(run, tasks=TASKS, methods=[method])) for method in (name, "finetune"))
    assert (mine.quantities, mine.mean, mine.stages) == (finetune.quantities, finetune.mean, (1, 2))


def test_a_new_metric_without_an_upper_bound_is_left_out_of_the_mean_of_bounded_ones(run: Run, shelf) -> None:
    unbounded = (
        "MAXIMUM = float('inf')\ndef score(predictions, *, references, details): return [0.0 for _ in predictions]\n"
    )
    name = shelf(unbounded, on="metrics")
    for stage in range(3):
        put(run, "seq-ft", stage, "shapes", [0.5])
        put(run, "seq-ft", stage, "captions", [3.0], metric=name)
    report = only(collect(run, tasks=TASKS))
    assert report.quantities["last"] == close((50, 300))
    assert (report.mean["last"], report.mean_of_bounded["last"]) == close((75, 50))


def test_reports_start_without_the_heavy_libraries() -> None:
    program = (
        "import sys, dmole_cli.reports.collect, dmole_cli.reports.costs, dmole_cli.reports.tables\n"
        "from dmole_cli.reports.evaluations import method_of\n"
        "print(method_of('d-mole@oracle').is_main, [n for n in ('torch', 'numpy', 'transformers') if n in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "True []\n"


def test_nothing_on_disk(run: Run) -> None:
    assert collect(run, tasks=TASKS) == []
    (entry,) = as_json(collect(run, tasks=TASKS, methods=[D_MOLE]))
    assert entry["stages"] == []
    assert entry["tasks"]["shapes"]["metric"] is None
    assert set(entry["mean"].values()) == {None}
    assert "method" in text_of(overview_table([]))


def test_trainable_parameters_are_the_most_of_any_stage(run: Run) -> None:
    fill(run, D_MOLE)
    put_expert(run, D_MOLE, "shapes", width=4)
    put_expert(run, D_MOLE, "captions", width=5)
    put_expert(run, "seq-ft", "shapes", width=100)
    assert only(collect(run, tasks=TASKS)).trainable_parameters == 2 * 5 + 3 * 2


def test_stored_parameters_are_those_of_the_files_that_the_last_stage_reads(run: Run) -> None:
    put_expert(run, "seq-ft", "shapes", width=100)
    put_expert(run, "seq-ft", "captions", width=4)
    for task in TASKS:
        put(run, "seq-ft", 1, task, [1], inputs=["data:shapes/test", "experts/seq-ft/shapes.safetensors"])
        put(run, "seq-ft", 2, task, [1], inputs=["data:shapes/test", "experts/seq-ft/captions.safetensors"])
    assert only(collect(run, tasks=TASKS)).stored_parameters == 2 * 4 + 3 * 2
    write_memory(run.memory("shapes", "seq-ft"), {"fisher": torch.zeros(7)}, Header.of(EXPERT))
    assert only(collect(run, tasks=TASKS)).stored_parameters == 2 * 4 + 3 * 2, (
        "the memory that counts is that of the last task"
    )
    write_memory(run.memory("captions", "seq-ft"), {"fisher": torch.zeros(5, 2)}, Header.of(EXPERT))
    assert only(collect(run, tasks=TASKS)).stored_parameters == 2 * 4 + 3 * 2 + 5 * 2
    run.expert("captions", "seq-ft").unlink()
    assert only(collect(run, tasks=TASKS)).stored_parameters is None


def test_stored_parameters_of_routed_experts_and_of_another_routing(run: Run) -> None:
    read = [f"{folder}/{task}.safetensors" for folder in ("experts", "routers") for task in TASKS]
    for task in TASKS:
        put_expert(run, D_MOLE, task, width=4)
        write_tensors(run.router(task), {"weight": torch.zeros(3, 4), "bias": torch.zeros(3)}, Header.of(ROUTER))
    for name in (D_MOLE, f"{D_MOLE}@oracle"):
        for task in TASKS:
            put(run, name, 2, task, [1], inputs=read)
    reports = collect(run, tasks=TASKS)
    assert [report.stored_parameters for report in reports] == [2 * (2 * 4 + 3 * 2) + 2 * 15] * 2
    assert [report.trainable_parameters for report in reports] == [2 * 4 + 3 * 2] * 2


@pytest.mark.parametrize(
    ("label", "options"),
    [
        ("d-mole", ""),
        ("d-mole@oracle", " --routing oracle"),
        ("d-mole@0.8", " --threshold-scale 0.8"),
        ("d-mole@top-1@1.25", " --routing top-1 --threshold-scale 1.25"),
    ],
)
def test_a_damaged_evaluation_names_the_command_that_replaces_it(run: Run, label: str, options: str) -> None:
    path = run.evaluation(label, 1, TASKS[0])
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no table")
    assert f"run: dmole evaluate --task {TASKS[0]} --method d-mole --stage 1{options} --force" in refused(run)


def test_stored_parameters_of_the_bounds(run: Run) -> None:
    for number, task in enumerate(TASKS, start=1):
        put(run, "zero-shot", 0, task, [1])
        put_expert(run, "finetune", task, width=4)
        put(run, "finetune", number, task, [1], inputs=[f"experts/finetune/{task}.safetensors"])
    zero_shot, finetune = collect(run, tasks=TASKS)
    assert (zero_shot.stored_parameters, finetune.stored_parameters) == (0, 2 * (2 * 4 + 3 * 2))
    run.evaluation("finetune", 2, TASKS[1]).unlink()
    assert collect(run, tasks=TASKS)[1].stored_parameters is None


def test_files_that_must_not_share_a_table_are_refused(run: Run) -> None:
    put(run, "seq-ft", 0, "shapes", [1])
    put(run, "seq-ft", 1, "shapes", [1], metric="vqa_accuracy")
    with pytest.raises(DmoleError, match=r"scored with vqa_accuracy.*with exact_match"):
        collect(run, tasks=TASKS)
    put(run, "seq-ft", 1, "shapes", [1], backbone="another")
    with pytest.raises(DmoleError, match="two backbones"):
        collect(run, tasks=TASKS)


def test_a_file_without_rows_or_damaged_is_named(run: Run) -> None:
    put(run, "seq-ft", 0, "shapes", [])
    with pytest.raises(DmoleError, match=r"shapes\.parquet holds no sample"):
        collect(run, tasks=TASKS)
    assert "run: dmole evaluate --task shapes --method seq-ft --stage 0 --force" in refused(run)
    run.evaluation("seq-ft", 0, "shapes").write_bytes(b"PAR1")
    with pytest.raises(DmoleError, match=r"shapes\.parquet cannot be read"):
        collect(run, tasks=TASKS)


def test_tables_show_numbers_formulas_and_gaps(run: Run) -> None:
    put(run, "zero-shot", 0, "shapes", [0.123])
    fill(run, "seq-ft")
    put_expert(run, "seq-ft", "shapes", width=4000)
    reports = collect(run, tasks=TASKS)
    for quantity in FORMULAS:
        shown = text_of(report_table(reports, quantity=quantity))
        assert FORMULAS[quantity] in " ".join(shown.split())
        assert points(reports[1].quantities[quantity][0]) in shown
    last = text_of(report_table(reports, quantity="last"))
    assert "12.3" in last and "150.0" in last and "80.0" in last and MISSING in last
    assert "seq-ft 8,006" in last and "zero-shot 0" in last
    overview = text_of(overview_table(reports))
    assert "-30.0" in overview and "87.5" in overview and FORMULAS["avg"] in " ".join(overview.split())
    matrix = text_of(matrix_table(reports[1]))
    assert all(number in matrix for number in ("10.0", "90.0", "130.0", "1 shapes", "0 pretrained"))
    with pytest.raises(DmoleError, match="unknown quantity"):
        report_table(reports, quantity="best")


def test_the_overview_of_five_tasks_fits_100_columns(run: Run) -> None:
    tasks = ("easyvqa", "digits", "captions", "grounding", "satellite")
    for method in ("zero-shot", "finetune", "seq-ft", D_MOLE):
        for stage in range(6):
            for index, task in enumerate(tasks):
                score = 0.1 * index + 0.01 * stage if stage <= index else 0.0
                metric = "cider" if task == "captions" else "multiple_choice"
                put(run, method, stage, task, [score], metric=metric, stream=tasks)
    shown = text_of(overview_table(collect(run, tasks=tasks)), width=100)
    assert "…" not in shown
    assert all(task in shown for task in tasks)
    assert max(len(line.rstrip()) for line in shown.splitlines()) <= 100


def test_routing_table_shows_per_cent(run: Run) -> None:
    fill(run, D_MOLE)
    put(run, D_MOLE, 2, "shapes", [1, 0], active=[["shapes"], ["shapes"]])
    put(run, D_MOLE, 2, "counting", [1, 0, 1, 1], active=[[], [], ["shapes"], []])
    shown = text_of(routing_table(collect(run, tasks=TASKS)))
    assert "100.0" in shown and "counting (never trained)" in shown and "75.0" in shown
    assert "captions" not in shown


def test_points_have_no_negative_zero() -> None:
    assert [points(value) for value in (-0.04, 0.0, 12.25, None)] == ["0.0", "0.0", "12.2", MISSING]
    assert [nats(value) for value in (-0.0004, -1.25, None)] == ["0.000", "-1.250", MISSING]


def test_a_report_by_name(run: Run) -> None:
    fill(run, "seq-ft")
    reports = collect(run, tasks=TASKS)
    assert (len(for_report(reports, "overview")), len(for_report(reports, "matrix"))) == (2, 1)
    put(run, "seq-ft", 2, "counting", [1])
    overview, _, routing = for_report(collect(run, tasks=TASKS), "overview")
    assert "BWT" in text_of(overview) and "never trained" in text_of(routing)
    assert "Forgetting" in text_of(for_report(reports, "forgetting")[0])


def test_a_pipe_gets_the_whole_width(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    tasks = tuple(f"a-task-with-a-long-name-{number}" for number in range(6))
    for task in tasks:
        put(run, "zero-shot", 0, task, [0.5], metric="exact_match")
    show(overview_table(collect(run, tasks=tasks)))
    shown = capsys.readouterr().out
    assert all(task in shown for task in tasks)
    assert "…" not in shown


def test_costs_are_totalled_per_stage(run: Run) -> None:
    assert cost_rows(run) == []
    assert profiling_share(run) is None
    for task, profiled, trained in (("shapes", 1.0, 40.0), ("captions", 0.5, 60.0)):
        write_json(run.cost("profile", task), {"seconds": profiled})
        write_json(run.cost("train-task-d-mole", task), {"seconds": trained, "counts": {"training_tokens": 7}})
    assert cost_rows(run) == [
        {"stage": "profile", "tasks": {"captions": 0.5, "shapes": 1.0}, "seconds": 1.5, "counts": {}},
        {
            "stage": "train-task-d-mole",
            "tasks": {"captions": 60.0, "shapes": 40.0},
            "seconds": 100.0,
            "counts": {"training_tokens": 14},
        },
    ]
    assert profiling_share(run) == close(0.015)
    # A task that was profiled and not yet trained does not count.
    write_json(run.cost("profile", "counting"), {"seconds": 100.0})
    assert profiling_share(run) == close(0.015)
    shown = text_of(cost_table(cost_rows(run)))
    assert "101.5" in shown and "1.50 %" in shown and MISSING in shown
    run.cost("profile", "shapes").write_text("[]")
    with pytest.raises(DmoleError, match=r"shapes\.json does not hold"):
        cost_rows(run)


def test_an_evaluation_whose_expert_has_changed_is_stale(run: Run) -> None:
    put_expert(run, D_MOLE, "shapes", width=4)
    put(run, D_MOLE, 1, "shapes", [1], inputs=["experts/shapes.safetensors"])
    assert only(collect(run, tasks=TASKS)).matrix[1][0] == 100
    put_expert(run, D_MOLE, "shapes", width=5)
    with pytest.raises(StaleArtifact, match=r"shapes\.safetensors has changed since it was made"):
        collect(run, tasks=TASKS)
