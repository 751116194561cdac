"""Reports of a run whose configuration has changed, of nothing, of unreadable folders, and at any width."""

import json
import os
from pathlib import Path

import pytest
import tiny
from test_reports import close, only, put, put_likelihood, text_of

from dmole_cli.artifacts.evaluation import read_evaluation, write_evaluation
from dmole_cli.artifacts.kinds import D_MOLE, EVALUATION
from dmole_cli.artifacts.provenance import Header
from dmole_cli.artifacts.run import Run
from dmole_cli.cli.workspace import Workspace, workspace
from dmole_cli.commands import evaluate, report
from dmole_cli.errors import DmoleError
from dmole_cli.methods._stream import _inputs, require_stream
from dmole_cli.methods.base import load_method
from dmole_cli.reports.collect import as_json, collect
from dmole_cli.reports.costs import cost_rows
from dmole_cli.reports.layout import Grid, show
from dmole_cli.reports.tables import for_report
from dmole_cli.settings.model import Settings
from dmole_cli.stages.rescore import Wanted, rescore

# Built-in tasks, so that a workspace knows their cards.
TASKS = ("easyvqa", "digits", "emoji")
# Points R[stage, task], one row per stage.
SCORES = ((10, 20, 30), (90, 25, 35), (70, 80, 40), (50, 60, 95))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "dmole-run")


def fill(run: Run, method: str, *, metric: str = "exact_match") -> None:
    """Evaluations of the whole matrix, each after learning the first tasks of `TASKS`."""
    for stage, row in enumerate(SCORES):
        for task, points in zip(TASKS, row, strict=True):
            put(run, method, stage, task, [points / 100], metric=metric, stream=TASKS)


def opened(run: Run, *, json: bool = False, **settings: object) -> Workspace:
    """The workspace of a command in this run directory."""
    return workspace(Settings(**{"tasks": TASKS, "unseen": (), **settings}), run, json=json, typed={"run": "--run R"})


@pytest.mark.parametrize(
    ("tasks", "rows"),
    [
        (("easyvqa", "emoji"), [(10, 30), (90, 35), (None, None)]),
        (("digits", "emoji"), [(20, 30), (None, None), (None, None)]),
        (("easyvqa", "digits"), [(10, 20), (90, 25), (70, 80)]),
        (("digits", "easyvqa", "emoji"), [(20, 10, 30), *[(None,) * 3] * 3]),
        (("easyvqa", "emoji", "digits"), [(10, 30, 20), (90, 35, 25), *[(None,) * 3] * 2]),
        ((*TASKS, "counting"), [(*row, None) for row in SCORES] + [(None,) * 4]),
        (("counting", *TASKS), [(None, *SCORES[0]), *[(None,) * 4] * 4]),
    ],
)
def test_no_score_is_of_a_stream_that_never_ran(run: Run, tasks: tuple[str, ...], rows: list) -> None:
    fill(run, "seq-ft")
    found = only(collect(run, tasks=tasks))
    assert [tuple(row) for row in found.matrix] == [close(row) for row in rows]
    used = sum(value is not None for row in rows for value in row)
    outside = {(stage, task) for task in TASKS if task not in tasks for stage in range(4)}
    known = {(stage, task) for stage, task in outside if stage <= len(tasks) and TASKS[:stage] == tasks[:stage]}
    assert len(found.left_out) == 12 - used - len(known)
    if len(tasks) == 2 and tasks[0] == "easyvqa" and tasks[1] == "digits":
        assert found.mean["bwt"] == close(-20)
        assert found.unseen == {"emoji": {"zero_shot": 30, "last": 40, "no_expert": None}}
    else:
        assert found.mean["last"] is found.mean["bwt"] is found.mean["maa"] is None


def test_scores_that_do_not_depend_on_the_order_stay(run: Run) -> None:
    """Each task alone, and all of them at once; but not those of another set of tasks."""
    for number, task in enumerate(TASKS, start=1):
        put(run, "finetune", number, task, [number / 10], metric="exact_match", stream=TASKS)
        put(run, "joint", 3, task, [0.5], metric="exact_match", stream=TASKS)
        put(run, "zero-shot", 0, task, [0.2], metric="exact_match", stream=TASKS)
    for order, expected in ((TASKS, (10, 20, 30)), (TASKS[::-1], (30, 20, 10)), (TASKS[1:], (20, 30))):
        found = {one.method: one for one in collect(run, tasks=order)}
        assert found["finetune"].quantities["last"] == close(expected)
        assert found["zero-shot"].mean["last"] == close(20)
        assert found["joint"].mean["last"] == (close(50) if len(order) == 3 else None)


def test_likelihoods_and_rescored_evaluations_are_of_the_stream_too(run: Run) -> None:
    fill(run, "seq-ft")
    for stage in range(1, 4):
        put_likelihood(run, "seq-ft", stage, "easyvqa", [-float(stage)], stream=TASKS)
    rescore("gqa", Wanted(), stream=TASKS, run=run)
    same = only(collect(run, tasks=TASKS, rescored=["gqa"]))
    assert same.knowledge["easyvqa"]["likelihood_forgetting"] == 2 and same.matrix[3][0] == 0
    other = only(collect(run, tasks=("easyvqa", "emoji", "digits"), rescored=["gqa"]))
    assert other.knowledge["easyvqa"]["log_likelihood_learnt"] == -1
    assert other.knowledge["easyvqa"]["log_likelihood_last"] is other.matrix[2][0] is None
    # An evaluation that was made again makes its rescored copy stale.
    put(run, "seq-ft", 3, "digits", [0.1], metric="exact_match", stream=TASKS)
    with pytest.raises(DmoleError, match=r"rescored/.*digits\.parquet is stale"):
        collect(run, tasks=TASKS, rescored=["gqa"])


def test_the_reason_is_given_once(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    for method in ("seq-ft", "ewc-lora"):
        fill(run, method)
    reordered = ("digits", "easyvqa", "emoji")
    report.show_report(opened(run, tasks=reordered), "bwt", None)
    shown = capsys.readouterr()
    assert shown.err.count("note:") == 1 and "18 evaluation file(s) of ewc-lora, seq-ft" in shown.err
    assert "digits, easyvqa, emoji" in shown.err and "after learning easyvqa" in shown.err
    assert "–" in shown.out
    report.show_report(opened(run, tasks=reordered, json=True), "bwt", None)
    shown = capsys.readouterr()
    assert shown.err.count("note:") == 1
    for entry in json.loads(shown.out):
        assert set(entry["mean"].values()) == {None} and len(entry["left_out"]) == 9
        assert entry["left_out"][0] | {"path": ""} == {"after": 1, "task": "digits", "learned": ["easyvqa"], "path": ""}
    report.show_report(opened(run), "bwt", None)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("learned", [None, "easyvqa", [1]])
def test_an_evaluation_that_does_not_say_what_was_learned_is_refused(run: Run, learned: object) -> None:
    fill(run, "seq-ft")
    path = run.evaluation("seq-ft", 1, "easyvqa")
    rows, _ = read_evaluation(path)
    settings = {"metric": "exact_match"} | ({} if learned is None else {"learned": learned})
    write_evaluation(path, rows, Header.of(EVALUATION, backbone="b", settings=settings))
    with pytest.raises(DmoleError, match="does not say which tasks had been learned"):
        collect(run, tasks=TASKS)


def test_parameters_are_those_of_the_configured_tasks(run: Run) -> None:
    from test_reports import put_expert

    fill(run, "seq-ft")
    put_expert(run, "seq-ft", "easyvqa", width=4)
    put_expert(run, "seq-ft", "counting", width=400)
    assert only(collect(run, tasks=TASKS)).trainable_parameters == 2 * 4 + 3 * 2


def test_a_report_of_nothing_is_an_error(run: Run) -> None:
    for as_json_ in (False, True):
        work = opened(run, json=as_json_)
        for name in report.REPORTS:
            with pytest.raises(DmoleError) as refused:
                report.show_report(work, name, None)
            assert refused.value.hint.endswith(f"dmole {'profile' if name == 'cost' else 'evaluate'} --run R")
    (run.evaluations() / D_MOLE / "1").mkdir(parents=True)
    with pytest.raises(DmoleError, match="no evaluations in"):
        report.show_report(opened(run), "last", None)


def test_a_method_without_evaluations_is_an_error(run: Run) -> None:
    fill(run, "seq-ft")
    work = opened(run)
    with pytest.raises(DmoleError, match="unknown method 'nope'"):
        report.show_report(work, "last", ["nope"])
    with pytest.raises(DmoleError, match="unknown method 'nope'"):
        report.show_report(work, "last", ["seq-ft", "nope@oracle"])
    for label, options in (
        ("ewc-lora", "--method ewc-lora"),
        ("d-mole@oracle", "--method d-mole --routing oracle"),
        ("d-mole@0.8", "--method d-mole --threshold-scale 0.8"),
    ):
        with pytest.raises(DmoleError, match="there are those of seq-ft") as refused:
            report.show_report(work, "last", ["seq-ft", label])
        assert refused.value.hint == f"run: dmole evaluate {options} --run R"
    with pytest.raises(DmoleError, match="unknown metric 'nope'"):
        report.show_report(work, "last", None, rescored=["nope"])
    with pytest.raises(DmoleError, match="scored again by gqa") as refused:
        report.show_report(work, "last", None, rescored=["gqa"])
    assert refused.value.hint == "run: dmole rescore gqa --run R"
    with pytest.raises(DmoleError, match="no likelihoods") as refused:
        report.show_report(work, "knowledge", None)
    assert refused.value.hint == "run: dmole evaluate --likelihood --method seq-ft --run R"


def test_the_command_exits_with_1_and_prints_no_table(tmp_path: Path) -> None:
    done = tiny.dmole("evaluate", "--report", "bwt", "--json", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "no evaluations" in done.stderr and "run: dmole evaluate" in done.stderr


def test_an_unreadable_folder_is_an_error(run: Run) -> None:
    fill(run, "seq-ft")
    stage = run.evaluation("seq-ft", 2, "easyvqa").parent
    for path in sorted(stage.iterdir()):
        path.unlink()
    stage.rmdir()
    stage.write_text("no folder")
    for read in (
        lambda: collect(run, tasks=TASKS),
        lambda: rescore("gqa", Wanted(), stream=TASKS, run=run),
        lambda: report.show_report(opened(run), "last", None),
    ):
        with pytest.raises(DmoleError, match=r"seq-ft/2 is not a folder"):
            read()
    stage.unlink()
    stage.symlink_to("nowhere")
    with pytest.raises(DmoleError, match="broken link"):
        collect(run, tasks=TASKS)
    stage.unlink()
    costs = run.cost("profile", "easyvqa").parent
    costs.parent.mkdir(parents=True)
    costs.symlink_to("nowhere")
    with pytest.raises(DmoleError, match="broken link"):
        cost_rows(run)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_a_folder_without_permission_is_an_error(run: Run) -> None:
    fill(run, "seq-ft")
    stage = run.evaluation("seq-ft", 2, "easyvqa").parent
    stage.chmod(0)
    try:
        with pytest.raises(DmoleError, match="seq-ft/2 cannot be read"):
            collect(run, tasks=TASKS)
    finally:
        stage.chmod(0o755)


def test_a_report_has_the_routing_that_was_typed(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    for label in (D_MOLE, "d-mole@oracle", "d-mole@top-1@0.8", "seq-ft"):
        fill(run, label)

    def reported(method: list[str] | None = None, **typed: list) -> list[str]:
        options = {"routing": [], "threshold_scale": []} | typed
        evaluate.run(opened(run, json=True), report="last", method=method, **options)
        return [entry["method"] for entry in json.loads(capsys.readouterr().out)]

    assert reported() == ["d-mole@oracle", "d-mole@top-1@0.8", "seq-ft", D_MOLE]
    assert reported(routing=["oracle"]) == ["d-mole@oracle"]
    assert reported([D_MOLE], routing=["oracle", "top-2"]) == ["d-mole@oracle", D_MOLE]
    assert reported(routing=["top-1"], threshold_scale=[0.8]) == ["d-mole@top-1@0.8"]
    assert reported(["d-mole@oracle", "seq-ft"]) == ["d-mole@oracle", "seq-ft"]
    with pytest.raises(DmoleError, match="no evaluations of d-mole@batch-vote"):
        reported(routing=["batch-vote"])
    with pytest.raises(DmoleError, match="seq-ft has no routers"):
        reported(["seq-ft"], routing=["oracle"])


def test_every_table_is_readable_at_any_width(run: Run) -> None:
    tasks = ("colours-of-things", "scienceqa", "k", "captions-of-photos", "documents")
    methods = ("zero-shot", "d-mole@batch-vote@1.25", D_MOLE)
    for method in methods:
        for stage in range(len(tasks) + 1 if method != "zero-shot" else 1):
            for number, task in enumerate(tasks):
                metric = "cider" if number == 3 else "normalised_match"
                active = [[task]] if method.startswith("d-mole") else ()
                put(run, method, stage, task, [0.1 * number + 0.01], metric=metric, stream=tasks, active=active)
    reports = collect(run, tasks=tasks)
    for width in (80, 50):
        for name in report.REPORTS[:-1]:
            for grid in for_report(reports, name):
                shown = text_of(grid, width=width)
                assert "…" not in shown and max(map(len, shown.splitlines())) <= width, shown
                words = set(shown.split())
                # Every text of a cell is there in one piece.
                assert words >= {word for row in grid.rows for cell in row for word in cell.plain.split()}, shown
                # Where the methods leave no room, each is the title of its own table.
                assert words >= {word for heading in grid.headings[width < 80 :] for word in heading.split()}, shown


def test_a_table_fits_the_columns_that_a_pipe_asks_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = Grid("title", ["what", *(f"a-long-heading-{number}" for number in range(12))])
    grid.add_row("a row", *("1.0" for _ in range(12)))
    widths = {}
    for columns in ("80", "", "0", "many"):
        monkeypatch.setenv("COLUMNS", columns)
        show(grid)
        widths[columns] = max(map(len, capsys.readouterr().out.splitlines()))
    assert widths["80"] <= 80 and widths[""] == widths["0"] == widths["many"] > 200


def test_a_cell_that_is_wider_than_the_table_is_broken_and_not_lost() -> None:
    grid = Grid("", ["method", "task", "score"], keys=2)
    grid.add_row("m" * 70, "t" * 70, "1.0")
    shown = text_of(grid, width=60)
    assert max(map(len, shown.splitlines())) <= 60
    assert (shown.count("m"), shown.count("t") - 1, shown.count("1.0")) == (70, 70, 1)


def test_json_has_the_averages_of_the_field(run: Run) -> None:
    fill(run, "seq-ft")
    (entry,) = as_json(collect(run, tasks=TASKS))
    # Diagonal 90, 80, 95; last row 50, 60, 95; seen tasks 90, (70 + 80) / 2, (50 + 60 + 95) / 3.
    expected = {"mft": 265 / 3, "mfn": 205 / 3, "maa": (90 + 75 + 205 / 3) / 3, "last": 205 / 3}
    assert {name: entry["mean"][name] for name in expected} == close(expected)
    assert {name: entry["mean_uncapped"][name] for name in expected} == close(expected)
    shown = text_of(for_report(collect(run, tasks=TASKS), "means")[0])
    assert all(text in shown for text in ("MFN", "MFT", "MAA", "88.3", "68.3", "77.8"))


@pytest.mark.parametrize(
    "method", ["seq-ft", "seq-ft-merge", "ewc-lora", "replay", "o-lora", D_MOLE, "finetune", "joint"]
)
def test_an_expert_of_another_stream_is_stale(run: Run, method: str) -> None:
    """An evaluation of it would say that tasks had been learned in an order in which they never were."""
    from test_reports import put_expert

    rules, settings = load_method(method), Settings(tasks=TASKS)
    for task in rules.trained_tasks(TASKS):
        put_expert(run, method, task, width=4, inputs=_inputs(rules, settings, run, task))
    require_stream(rules, settings, run, TASKS)
    for tasks in (("digits", "easyvqa", "emoji"), ("easyvqa", "emoji"), ("counting", *TASKS), ("digits", "emoji")):
        other = Settings(tasks=tasks)
        if method == "finetune" or (method == "joint" and set(tasks) == set(TASKS)):
            require_stream(rules, other, run, tasks)
            continue
        with pytest.raises(DmoleError, match="was trained after"):
            require_stream(rules, other, run, tasks)
    # Tasks that follow later do not matter.
    if method != "joint":
        require_stream(rules, Settings(tasks=(*TASKS, "counting")), run, TASKS)
        require_stream(rules, Settings(tasks=TASKS[:2]), run, TASKS[:2])
