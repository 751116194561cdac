"""Reports as tables for a terminal, each with the formulas of its quantities below it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.text import Text

from dmole_cli.errors import DmoleError
from dmole_cli.reports.collect import CEILING, KNOWLEDGE, MethodReport
from dmole_cli.reports.continual import AVERAGES, FORMULAS, Value
from dmole_cli.reports.costs import share_of_profiling
from dmole_cli.reports.layout import Grid

MISSING = "–"
TITLES = {"last": "Last", "avg": "AVG", "bwt": "BWT", "forgetting": "Forgetting", "fwt": "FWT"}
UNITS = "Points: 0 to 100, CIDEr x 100."
CAPPED = (
    f"Mean: every score is capped at {CEILING:.0f} first, but BWT, forgetting and FWT are differences of uncapped scores. "
    f"Uncapped: the mean of the scores as they are. Bounded: the mean over the tasks whose metric cannot exceed {CEILING:.0f}."
)


def for_report(reports: Sequence[MethodReport], name: str) -> list[Grid]:
    """The tables of a report: `overview` (several), `means`, `matrix` (one per method), `knowledge`, or one quantity.

    Raises:
        DmoleError: no such report.
    """
    if name == "overview":
        routing = [routing_table(reports)] if any(_has_routing(report) for report in reports) else []
        further = [further_table(reports)] if any(report.further for report in reports) else []
        return [overview_table(reports), means_table(reports), *further, *routing]
    if name == "means":
        return [means_table(reports)]
    if name == "matrix":
        return [matrix_table(report) for report in reports]
    if name == "knowledge":
        return [knowledge_table(reports)]
    return [report_table(reports, quantity=name)]


def report_table(reports: Sequence[MethodReport], *, quantity: str) -> Grid:
    """Show one quantity (a key of `TITLES`): a row per method, a column per task, and the means.

    Raises:
        DmoleError: no such quantity.
    """
    if quantity not in TITLES:
        raise DmoleError(f"unknown quantity '{quantity}'", f"choose one of: {', '.join(TITLES)}")
    title = f"{TITLES[quantity]} in points"
    grid = Grid(title, ["method", *_score_headings(reports)], caption=_caption(reports, [quantity]))
    for report in reports:
        grid.add_row(report.method, *_score_texts(report, quantity, reports))
    return grid


def overview_table(reports: Sequence[MethodReport]) -> Grid:
    """Show Last, AVG and BWT per task and method, three rows per method."""
    shown = ("last", "avg", "bwt")
    headings = ["method", "", *_score_headings(reports)]
    grid = Grid("Last, AVG and BWT in points", headings, keys=2, caption=_caption(reports, shown))
    for report in reports:
        for quantity in shown:
            name = report.method if quantity == shown[0] else ""
            texts = _score_texts(report, quantity, reports)
            grid.add_row(name, TITLES[quantity], *texts, end_section=quantity == shown[-1])
    return grid


def means_table(reports: Sequence[MethodReport]) -> Grid:
    """Show every mean over the stream per method; where the cap matters, also uncapped and of the bounded metrics."""
    headings = {"last": "Last\n= MFN", "mft": "MFT", "maa": "MAA", "avg": "AVG", "bwt": "BWT"}
    headings |= {"forgetting": "Forget-\nting", "fwt": "FWT"}
    formulas = [*AVERAGES.values(), "the others: the means that the reports of these names define"]
    bounded = _all_bounded(reports)
    caption = "\n".join([*formulas, UNITS, *([] if bounded else [CAPPED])])
    grid = Grid("Means over the stream in points", ["method", "", *headings.values()], keys=2, caption=caption)
    for report in reports:
        kinds = {"mean": report.mean}
        if not bounded:
            kinds |= {"uncapped": report.mean_uncapped, "bounded": report.mean_of_bounded}
        for kind, values in kinds.items():
            name = report.method if kind == "mean" else ""
            last = kind == list(kinds)[-1] and not bounded
            grid.add_row(name, kind, *(points(values[key]) for key in headings), end_section=last)
    return grid


def matrix_table(report: MethodReport) -> Grid:
    """Show the score matrix R[stage, task] of a method; the stage at which a task was trained is in bold."""
    headings = ["stage", *(_headline(report, task) for task in report.tasks)]
    caption = "\n".join([*FORMULAS.values(), UNITS])
    grid = Grid(f"{report.method}: R[stage, task] in points", headings, caption=caption)
    for stage, row in enumerate(report.matrix):
        learnt = "pretrained" if stage == 0 else report.tasks[stage - 1]
        texts = [Text(points(v), style="bold" if column + 1 == stage else "") for column, v in enumerate(row)]
        grid.add_row(f"{stage} {learnt}", *texts)
    return grid


def routing_table(reports: Sequence[MethodReport]) -> Grid:
    """Show the share of correctly routed samples at the last stage, a row per method and task, and scores before and after."""
    caption = "routed right: % of samples whose active experts include the task's own; of a task that was never "
    caption += "trained: % without an active expert. R[0] and R[T]: points before and after the stream."
    title = "Routing, and scores of tasks that were never trained"
    grid = Grid(title, ["method", "task", "routed right", "R[0]", "R[T]"], keys=2, caption=caption)
    for report in reports:
        for column, task in enumerate(report.tasks):
            if (share := report.routing[task]) is not None:
                grid.add_row(report.method, task, _percent(share), *map(points, _ends(report, column)))
        for task, values in report.unseen.items():
            texts = (_percent(values["no_expert"]), points(values["zero_shot"]), points(values["last"]))
            grid.add_row(report.method, f"{task} (never trained)", *texts)
    return grid


def further_table(reports: Sequence[MethodReport]) -> Grid:
    """Show what metrics report beside their score (grounding: the mean IoU), a row per method, task and value."""
    caption = "\n".join(FORMULAS[name].partition(";")[0] for name in TITLES)
    grid = Grid("Beside the score, in points", ["method", "task", "", *TITLES.values()], keys=3, caption=caption)
    for report in reports:
        for task, found in report.further.items():
            for name, values in found.items():
                texts = [points(values[quantity]) for quantity in TITLES]
                grid.add_row(report.method, task, name.replace("_", " "), *texts)
    return grid


def knowledge_table(reports: Sequence[MethodReport]) -> Grid:
    """Show how much of the scores and of the likelihoods of the references was lost, a row per method and task."""
    caption = "\n".join(
        [
            f"score: {FORMULAS['bwt'].partition(';')[0]} in points; an answer in another form counts as wrong.",
            f"first: {KNOWLEDGE['ranked_first']}; {MISSING} for open tasks.",
            f"nats: {KNOWLEDGE['log_likelihood']}.",
            "change: R[T,i] - R[i,i].",
        ]
    )
    parts = (f"{what}\n{when}" for what in ("first", "nats") for when in ("R[i,i]", "R[T,i]", "change"))
    headings = ["method", "task", "score\nBWT", *parts]
    grid = Grid("What was lost: scores, and likelihoods of the references", headings, keys=2, caption=caption)
    for report in reports:
        for column, task in enumerate(report.tasks):
            known = report.knowledge[task]
            grid.add_row(
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
    return grid


def nats(value: Value) -> str:
    """Format a log-likelihood with three decimals, or a missing one as `MISSING`; never "-0.000"."""
    return MISSING if value is None else f"{round(value, 3) + 0.0:.3f}"


def _negative(value: Value) -> Value:
    return None if value is None else -value


def points(value: Value) -> str:
    """Format a number with one decimal, or a missing one as `MISSING`; never "-0.0"."""
    return MISSING if value is None else f"{round(value, 1) + 0.0:.1f}"


def cost_table(rows: Sequence[Mapping[str, Any]]) -> Grid:
    """Show the seconds of every stage (rows of `costs.cost_rows`), and profiling's share of training."""
    share = share_of_profiling(rows)
    caption = (
        "Seconds of the stage's own work, without starting the process and loading the backbone.\n"
        "Base passes: samples whose routing features were computed. Answers: samples generated."
    )
    if share is not None:
        caption += f"\nProfiling took {100 * share:.2f} % of the seconds that training the same tasks took."
    tasks = list(dict.fromkeys(task for row in rows for task in row["tasks"]))
    grid = Grid("Cost in seconds", ["stage", *tasks, "sum", "base passes", "answers"], caption=caption)
    for row in rows:
        seconds = [row["tasks"].get(task) for task in tasks]
        computed = [_count(row["counts"].get(name, 0)) for name in ("feature_passes", "generations")]
        grid.add_row(row["stage"], *map(points, (*seconds, row["seconds"])), *computed)
    return grid


def _score_headings(reports: Sequence[MethodReport]) -> list[str]:
    """Headings of the tasks, and of their means: one mean where no metric exceeds the cap, else three."""
    tasks = [_headline(reports[0], task) for task in reports[0].tasks] if reports else []
    return [*tasks, "mean", *([] if _all_bounded(reports) else ["mean\nuncapped", "bounded\nmetrics"])]


def _score_texts(report: MethodReport, quantity: str, reports: Sequence[MethodReport]) -> list[str]:
    means = [report.mean, *([] if _all_bounded(reports) else [report.mean_uncapped, report.mean_of_bounded])]
    return [points(value) for value in (*report.quantities[quantity], *(mean[quantity] for mean in means))]


def _all_bounded(reports: Sequence[MethodReport]) -> bool:
    return all(report.is_bounded for report in reports)


def _headline(report: MethodReport, task: str) -> str:
    metric = report.metrics.get(task)
    return task if metric is None else f"{task}\n{metric.replace('_', chr(10))}"


def _caption(reports: Sequence[MethodReport], quantities: Sequence[str]) -> str:
    counts = [f"{report.method} {_count(report.trainable_parameters)}" for report in reports]
    formulas = [FORMULAS[name] for name in quantities]
    capped = [] if _all_bounded(reports) else [CAPPED]
    return "\n".join([*formulas, UNITS, *capped, f"Trainable parameters: {'; '.join(counts)}."])


def _has_routing(report: MethodReport) -> bool:
    return bool(report.unseen) or any(share is not None for share in report.routing.values())


def _ends(report: MethodReport, column: int) -> tuple[Value, Value]:
    return report.matrix[0][column], report.matrix[-1][column]


def _percent(share: Value) -> str:
    return MISSING if share is None else f"{100 * share:.1f}"


def _count(number: int | None) -> str:
    return MISSING if number is None else f"{number:,}"
