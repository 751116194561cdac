"""Reports as tables for a terminal, the formulas under every one, and what the stages cost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from dmole_cli.artifacts.layout import Run
from dmole_cli.errors import DmoleError
from dmole_cli.reports.continual import FORMULAS, Cell
from dmole_cli.reports.summary import CEILING, MethodReport

MISSING = "–"
TITLES = {"last": "Last", "avg": "AVG", "bwt": "BWT", "forgetting": "Forgetting", "fwt": "FWT"}
UNITS = f"Points: 0 to 100, CIDEr x 100. The mean caps every score at {CEILING:.0f} first (only CIDEr can exceed it)."

# Costs of these stages are compared; other methods' training stands under names of its own.
PROFILE, TRAIN = "profile", "train-task"


@dataclass(frozen=True)
class CostRow:
    """Seconds that a stage took, by task and in all.

    Attributes:
        stage: folder name under `costs`.
        tasks: task -> seconds of the stage's own work.
        seconds: their sum.
        whole_process: sum of the processes' seconds from start to end, imports and loading included; None where one of
            the tasks' files does not say.
    """

    stage: str
    tasks: dict[str, float]
    seconds: float
    whole_process: float | None


def report_table(reports: Sequence[MethodReport], *, quantity: str) -> Table:
    """Show one quantity (`last`, `avg`, `bwt`, `forgetting`, `fwt`): a row per method, a column per task, the means.

    Raises:
        DmoleError: no such quantity.
    """
    if quantity not in TITLES:
        raise DmoleError(f"unknown quantity '{quantity}'", f"choose one of: {', '.join(TITLES)}")
    table = _table(f"{TITLES[quantity]} in points", _caption(reports, [quantity]))
    table.add_column("method")
    _add_score_columns(table, reports)
    for report in reports:
        table.add_row(report.method, *_score_cells(report, quantity))
    return table


def overview_table(reports: Sequence[MethodReport]) -> Table:
    """Show Last, AVG and BWT per task and method, three rows to a method; fits 100 columns with five tasks."""
    shown = ("last", "avg", "bwt")
    table = _table("Last, AVG and BWT in points", _caption(reports, shown))
    table.add_column("method")
    table.add_column("")
    _add_score_columns(table, reports)
    for report in reports:
        for quantity in shown:
            name = report.method if quantity == shown[0] else ""
            table.add_row(name, TITLES[quantity], *_score_cells(report, quantity), end_section=quantity == shown[-1])
    return table


def matrix_table(report: MethodReport) -> Table:
    """Show every score R[stage, task] of a method; a task's own stage is set in bold."""
    table = _table(f"{report.method}: R[stage, task] in points", "\n".join([*FORMULAS.values(), UNITS]))
    table.add_column("stage")
    for task in report.tasks:
        table.add_column(_headline(report, task), justify="right", no_wrap=True)
    for stage, row in enumerate(report.matrix):
        learnt = "pretrained" if stage == 0 else report.tasks[stage - 1]
        cells = [f"[bold]{points(c)}[/]" if column + 1 == stage else points(c) for column, c in enumerate(row)]
        table.add_row(f"{stage} {learnt}", *cells)
    return table


def routing_table(reports: Sequence[MethodReport]) -> Table:
    """Show where samples went at the last stage, a row per method and task, with the scores before and after."""
    caption = "routed right: % of test samples whose active experts include the task's own; of a task that was never "
    caption += "trained: % that activate no expert. R[0] and R[T]: points before and after the stream."
    table = _table("Routing, and what became of tasks that were never trained", caption)
    table.add_column("method")
    table.add_column("task")
    for title in ("routed right", "R[0]", "R[T]"):
        table.add_column(title, justify="right", no_wrap=True)
    for report in reports:
        for column, task in enumerate(report.tasks):
            if (share := report.routing[task]) is not None:
                table.add_row(report.method, task, _percent(share), *map(points, _ends(report, column)))
        for task, values in report.unseen.items():
            cells = (_percent(values["no_expert"]), points(values["zero_shot"]), points(values["last"]))
            table.add_row(report.method, f"{task} (never trained)", *cells)
    return table


def points(value: Cell) -> str:
    """Write a score with one decimal, or the sign for a missing one; no "-0.0"."""
    return MISSING if value is None else f"{round(value, 1) + 0.0:.1f}"


def cost_rows(run: Run) -> list[CostRow]:
    """Read `costs/<stage>/<task>.json` (`seconds`, perhaps `whole_process`) and total them per stage, stages by name.

    Raises:
        DmoleError: a file is not what a stage writes.
    """
    folder = run.cost("stage", "task").parents[1]
    stages = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    return [row for stage in stages if (row := _cost_row(stage)).tasks]


def profiling_share(run: Run) -> float | None:
    """Profiling's seconds over training's, counting the tasks that have both; None where there is none."""
    by_stage = {row.stage: row.tasks for row in cost_rows(run)}
    profiled, trained = by_stage.get(PROFILE, {}), by_stage.get(TRAIN, {})
    both = profiled.keys() & trained.keys()
    training = sum(trained[task] for task in both)
    return sum(profiled[task] for task in both) / training if training > 0 else None


def _cost_row(folder: Path) -> CostRow:
    costs = {path.stem: _read_cost(path) for path in sorted(folder.glob("*.json"))}
    whole = [whole for _, whole in costs.values() if whole is not None]
    return CostRow(
        stage=folder.name,
        tasks={task: seconds for task, (seconds, _) in costs.items()},
        seconds=sum(seconds for seconds, _ in costs.values()),
        whole_process=sum(whole) if len(whole) == len(costs) else None,
    )


def _read_cost(path: Path) -> tuple[float, float | None]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        whole = document.get("whole_process")
        return float(document["seconds"]), None if whole is None else float(whole)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DmoleError(
            f"{path} does not hold a stage's seconds: {error!r}", "delete it; only cost tables need it"
        ) from error


def _table(title: str, caption: str) -> Table:
    # As Text, because "[s,i]" in a formula would be taken for markup and vanish.
    return Table(
        title=Text(title, style="bold"),
        caption=Text(caption, style="dim"),
        box=box.SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
        padding=(0, 1, 0, 0),
    )


def _add_score_columns(table: Table, reports: Sequence[MethodReport]) -> None:
    for task in reports[0].tasks if reports else ():
        table.add_column(_headline(reports[0], task), justify="right", no_wrap=True, min_width=6)
    table.add_column("mean", justify="right", no_wrap=True, min_width=6)
    table.add_column("without\nCIDEr", justify="right", no_wrap=True)


def _headline(report: MethodReport, task: str) -> str:
    metric = report.metrics.get(task)
    return task if metric is None else f"{task}\n[dim]{metric.replace('_', ' ')}[/]"


def _score_cells(report: MethodReport, quantity: str) -> list[str]:
    values = (*report.quantities[quantity], report.mean[quantity], report.mean_without_cider[quantity])
    return [points(value) for value in values]


def _caption(reports: Sequence[MethodReport], quantities: Sequence[str]) -> str:
    counts = [f"{report.method} {_count(report.trainable_parameters)}" for report in reports]
    return "\n".join([*(FORMULAS[name] for name in quantities), UNITS, f"Trainable parameters: {'; '.join(counts)}."])


def _ends(report: MethodReport, column: int) -> tuple[Cell, Cell]:
    return report.matrix[0][column], report.matrix[-1][column]


def _percent(share: Cell) -> str:
    return MISSING if share is None else f"{100 * share:.1f}"


def _count(number: int | None) -> str:
    return MISSING if number is None else f"{number:,}"
