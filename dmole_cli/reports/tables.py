"""Reports as tables for a terminal, each with the formulas of its quantities below it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dmole_cli.errors import DmoleError
from dmole_cli.reports.collect import CEILING, KNOWLEDGE, MethodReport
from dmole_cli.reports.continual import FORMULAS, Value
from dmole_cli.reports.costs import share_of_profiling

MISSING = "–"
# Smallest and largest width, in columns of text, of a table that is written to a file or a pipe.
NARROWEST, WIDEST = 100, 10_000
TITLES = {"last": "Last", "avg": "AVG", "bwt": "BWT", "forgetting": "Forgetting", "fwt": "FWT"}
UNITS = f"Points: 0 to 100, CIDEr x 100. The mean caps every score at {CEILING:.0f} first (only CIDEr can exceed it)."


def for_report(reports: Sequence[MethodReport], name: str) -> list[Table]:
    """The tables of a report: `overview` (several), `matrix` (one per method), `knowledge`, or one quantity.

    Raises:
        DmoleError: no such report.
    """
    if name == "overview":
        routing = [routing_table(reports)] if any(_has_routing(report) for report in reports) else []
        further = [further_table(reports)] if any(report.further for report in reports) else []
        return [overview_table(reports), *further, *routing]
    if name == "matrix":
        return [matrix_table(report) for report in reports]
    if name == "knowledge":
        return [knowledge_table(reports)]
    return [report_table(reports, quantity=name)]


def show(table: Table) -> None:
    """Print a table on stdout; unless that is a terminal, as wide as the table needs, so that nothing is truncated."""
    console = Console()
    if not console.is_terminal:
        needed = console.measure(table, options=console.options.update(width=WIDEST)).maximum
        console = Console(width=max(NARROWEST, needed))
    console.print(table)


def report_table(reports: Sequence[MethodReport], *, quantity: str) -> Table:
    """Show one quantity (a key of `TITLES`): a row per method, a column per task, and the means.

    Raises:
        DmoleError: no such quantity.
    """
    if quantity not in TITLES:
        raise DmoleError(f"unknown quantity '{quantity}'", f"choose one of: {', '.join(TITLES)}")
    table = _table(f"{TITLES[quantity]} in points", _caption(reports, [quantity]))
    table.add_column("method")
    _add_score_columns(table, reports)
    for report in reports:
        table.add_row(report.method, *_score_texts(report, quantity))
    return table


def overview_table(reports: Sequence[MethodReport]) -> Table:
    """Show Last, AVG and BWT per task and method, three rows per method; fits 100 columns with five tasks."""
    shown = ("last", "avg", "bwt")
    table = _table("Last, AVG and BWT in points", _caption(reports, shown))
    table.add_column("method")
    table.add_column("")
    _add_score_columns(table, reports)
    for report in reports:
        for quantity in shown:
            name = report.method if quantity == shown[0] else ""
            table.add_row(name, TITLES[quantity], *_score_texts(report, quantity), end_section=quantity == shown[-1])
    return table


def matrix_table(report: MethodReport) -> Table:
    """Show the score matrix R[stage, task] of a method; the stage at which a task was trained is in bold."""
    table = _table(f"{report.method}: R[stage, task] in points", "\n".join([*FORMULAS.values(), UNITS]))
    table.add_column("stage")
    for task in report.tasks:
        table.add_column(_headline(report, task), justify="right", no_wrap=True)
    for stage, row in enumerate(report.matrix):
        learnt = "pretrained" if stage == 0 else report.tasks[stage - 1]
        texts = [f"[bold]{points(v)}[/]" if column + 1 == stage else points(v) for column, v in enumerate(row)]
        table.add_row(f"{stage} {learnt}", *texts)
    return table


def routing_table(reports: Sequence[MethodReport]) -> Table:
    """Show the share of correctly routed samples at the last stage, a row per method and task, and scores before and after."""
    caption = "routed right: % of samples whose active experts include the task's own; of a task that was never "
    caption += "trained: % without an active expert. R[0] and R[T]: points before and after the stream."
    table = _table("Routing, and scores of tasks that were never trained", caption)
    table.add_column("method")
    table.add_column("task")
    for title in ("routed right", "R[0]", "R[T]"):
        table.add_column(title, justify="right", no_wrap=True)
    for report in reports:
        for column, task in enumerate(report.tasks):
            if (share := report.routing[task]) is not None:
                table.add_row(report.method, task, _percent(share), *map(points, _ends(report, column)))
        for task, values in report.unseen.items():
            texts = (_percent(values["no_expert"]), points(values["zero_shot"]), points(values["last"]))
            table.add_row(report.method, f"{task} (never trained)", *texts)
    return table


def further_table(reports: Sequence[MethodReport]) -> Table:
    """Show what metrics report beside their score (grounding: the mean IoU), a row per method, task and value."""
    table = _table("Beside the score, in points", "\n".join(FORMULAS[name].partition(";")[0] for name in TITLES))
    for title in ("method", "task", ""):
        table.add_column(title)
    for title in TITLES.values():
        table.add_column(title, justify="right", no_wrap=True)
    for report in reports:
        for task, found in report.further.items():
            for name, values in found.items():
                texts = [points(values[quantity]) for quantity in TITLES]
                table.add_row(report.method, task, name.replace("_", " "), *texts)
    return table


def knowledge_table(reports: Sequence[MethodReport]) -> Table:
    """Show how much of the scores and of the likelihoods of the references was lost, a row per method and task."""
    caption = "\n".join(
        [
            f"score: {FORMULAS['bwt'].partition(';')[0]} in points; an answer in another form counts as wrong.",
            f"first: {KNOWLEDGE['ranked_first']}; {MISSING} for open tasks.",
            f"nats: {KNOWLEDGE['log_likelihood']}.",
            "change: R[T,i] - R[i,i].",
        ]
    )
    table = _table("What was lost: scores, and likelihoods of the references", caption)
    table.add_column("method")
    table.add_column("task")
    titles = [
        "score\nBWT",
        *(f"{what}\n{when}" for what in ("first", "nats") for when in ("R[i,i]", "R[T,i]", "change")),
    ]
    for title in titles:
        table.add_column(Text(title), justify="right", no_wrap=True)
    for report in reports:
        for column, task in enumerate(report.tasks):
            known = report.knowledge[task]
            table.add_row(
                report.method if column == 0 else "",
                task,
                points(report.quantities["bwt"][column]),
                points(known["ranked_first_learnt"]),
                points(known["ranked_first_last"]),
                points(_negative(known["ranked_forgetting"])),
                nats(known["log_likelihood_learnt"]),
                nats(known["log_likelihood_last"]),
                nats(_negative(known["likelihood_forgetting"])),
                end_section=task == report.tasks[-1],
            )
    return table


def nats(value: Value) -> str:
    """Format a log-likelihood with three decimals, or a missing one as `MISSING`; never "-0.000"."""
    return MISSING if value is None else f"{round(value, 3) + 0.0:.3f}"


def _negative(value: Value) -> Value:
    return None if value is None else -value


def points(value: Value) -> str:
    """Format a number with one decimal, or a missing one as `MISSING`; never "-0.0"."""
    return MISSING if value is None else f"{round(value, 1) + 0.0:.1f}"


def cost_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Show the seconds of every stage (rows of `costs.cost_rows`), and profiling's share of training."""
    share = share_of_profiling(rows)
    caption = (
        "Seconds of the stage's own work, without starting the process and loading the backbone.\n"
        "Base passes: samples whose routing features were computed. Answers: samples generated."
    )
    if share is not None:
        caption += f"\nProfiling took {100 * share:.2f} % of the seconds that training the same tasks took."
    table = _table("Cost in seconds", caption)
    table.add_column("stage")
    tasks = list(dict.fromkeys(task for row in rows for task in row["tasks"]))
    for title in (*tasks, "sum"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("base passes", justify="right")
    table.add_column("answers", justify="right")
    for row in rows:
        seconds = [row["tasks"].get(task) for task in tasks]
        computed = [_count(row["counts"].get(name, 0)) for name in ("feature_passes", "generations")]
        table.add_row(row["stage"], *map(points, (*seconds, row["seconds"])), *computed)
    return table


def _table(title: str, caption: str) -> Table:
    # As Text, because rich would parse "[s,i]" in a formula as markup.
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
    table.add_column("bounded\nmetrics", justify="right", no_wrap=True)


def _headline(report: MethodReport, task: str) -> str:
    metric = report.metrics.get(task)
    return task if metric is None else f"{task}\n[dim]{metric.replace('_', ' ')}[/]"


def _score_texts(report: MethodReport, quantity: str) -> list[str]:
    values = (*report.quantities[quantity], report.mean[quantity], report.mean_of_bounded[quantity])
    return [points(value) for value in values]


def _caption(reports: Sequence[MethodReport], quantities: Sequence[str]) -> str:
    counts = [f"{report.method} {_count(report.trainable_parameters)}" for report in reports]
    bounded = f"Bounded metrics: mean over the tasks whose metric cannot exceed {CEILING:.0f} points."
    formulas = [FORMULAS[name] for name in quantities]
    return "\n".join([*formulas, UNITS, bounded, f"Trainable parameters: {'; '.join(counts)}."])


def _has_routing(report: MethodReport) -> bool:
    return bool(report.unseen) or any(share is not None for share in report.routing.values())


def _ends(report: MethodReport, column: int) -> tuple[Value, Value]:
    return report.matrix[0][column], report.matrix[-1][column]


def _percent(share: Value) -> str:
    return MISSING if share is None else f"{100 * share:.1f}"


def _count(number: int | None) -> str:
    return MISSING if number is None else f"{number:,}"
