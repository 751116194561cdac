"""The results of a comparison as rows (method, order, seed, task, quantity, value), not rounded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from _plan import Experiment, Record

from dmole_cli.artifacts.run import Run
from dmole_cli.reports.collect import MEANS, QUANTITIES, MethodReport, collect
from dmole_cli.reports.costs import cost_rows

# Values of the column `task` for means and totals.
MEAN, MEAN_UNCAPPED, MEAN_WITHOUT, ALL = "mean", "mean uncapped", "mean without CIDEr", "all"
# Quantities from likelihoods; see `KNOWLEDGE` of the reports.
CLOSED = "ranked_first"  # only for tasks whose card lists all possible answers
LIKELIHOODS = (CLOSED, "log_likelihood")


@dataclass(frozen=True)
class Row:
    """One number: scores in points, shares of samples in percent."""

    method: str
    order: str
    seed: int
    task: str
    quantity: str
    value: float


def rows_of(folder: Path, record: Record, *, group: str) -> list[Row]:
    """The rows of a group's finished experiments; a quantity without a value has no row.

    Raises:
        DmoleError: an evaluation or cost file is damaged.
    """
    return [row for e in record.experiments if e.group == group for row in _rows_of_experiment(folder, record, e)]


def _rows_of_experiment(folder: Path, record: Record, experiment: Experiment) -> Iterator[Row]:
    result = folder / experiment.result
    if not result.is_file():
        return
    run, tasks = Run(folder / experiment.folder, folder / experiment.shared), record.orders[experiment.order]
    evaluations = result.parts[-3]
    (report,) = collect(run, tasks=tasks, methods=[evaluations], split=record.split)
    values = {**_scores(report), **_shares(report), **_knowledge(report)}
    values |= {(ALL, name): getattr(report, name) for name in ("trainable_parameters", "stored_parameters")}
    routes = any(share is not None for share in report.routing.values())
    seconds = _seconds(run, experiment, evaluations, record.split, routes=routes)
    values |= {(ALL, name): value for name, value in seconds.items()}
    for (task, quantity), value in values.items():
        if value is not None:
            yield Row(experiment.label, experiment.order, experiment.seed, task, quantity, value)


def _scores(report: MethodReport) -> dict[tuple[str, str], float | None]:
    values: dict[tuple[str, str], float | None] = {}
    for name in QUANTITIES:
        values |= {(task, name): report.quantities[name][i] for i, task in enumerate(report.tasks)}
    means = {MEAN: report.mean, MEAN_UNCAPPED: report.mean_uncapped, MEAN_WITHOUT: report.mean_of_bounded}
    values |= {(kind, name): found[name] for kind, found in means.items() for name in MEANS}
    for stage, row in enumerate(report.matrix):
        values |= {(task, f"R[{stage}]"): entry for task, entry in zip(report.tasks, row, strict=True)}
    return values


def _knowledge(report: MethodReport) -> dict[tuple[str, str], float | None]:
    """Quantities from likelihoods, if they were measured; `*_bwt` is the change since the task's own training, as in BWT."""
    values: dict[tuple[str, str], float | None] = {}
    for kind in LIKELIHOODS:
        lost = []
        for task, known in report.knowledge.items():
            learnt, last = known[f"{kind}_learnt"], known[f"{kind}_last"]
            change = None if learnt is None or last is None else last - learnt
            values |= {(task, f"{kind}_learnt"): learnt, (task, f"{kind}_last"): last, (task, f"{kind}_bwt"): change}
            # As in BWT, the mean excludes the last task.
            if change is not None and task != report.tasks[-1]:
                lost.append((change, report.quantities["bwt"][report.tasks.index(task)]))
        if lost:
            values[MEAN, f"{kind}_bwt"] = fmean(change for change, _ in lost)
        if kind == CLOSED and lost and all(score is not None for _, score in lost):
            values[MEAN, "bwt_of_closed"] = fmean(score for _, score in lost if score is not None)
    return values


def _shares(report: MethodReport) -> dict[tuple[str, str], float | None]:
    """Routing after the last task in percent, and scores of tasks that were never trained."""
    right = {task: None if share is None else 100 * share for task, share in report.routing.items()}
    values: dict[tuple[str, str], float | None] = {(task, "routed_right"): share for task, share in right.items()}
    known = [share for share in right.values() if share is not None]
    values[MEAN, "routed_right"] = fmean(known) if known and len(known) == len(right) else None
    for task, found in report.unseen.items():
        values |= {(task, "zero_shot"): found["zero_shot"], (task, "last"): found["last"]}
        values[task, "no_expert"] = None if found["no_expert"] is None else 100 * found["no_expert"]
    return values


def _seconds(run: Run, experiment: Experiment, evaluations: str, split: str, *, routes: bool) -> dict[str, float]:
    costs = {row["stage"]: row["seconds"] for row in cost_rows(run)}
    # Profiles and routers count only for a method that uses them.
    allocates = any(run.allocation("task", experiment.method).parent.glob("*.json"))
    prepared = [name for name, used in (("profile", allocates), ("train-router", routes)) if used]
    return {
        "preparation_seconds": sum(costs.get(name, 0.0) for name in prepared),
        "training_seconds": costs.get(f"train-task-{experiment.method}", 0.0),
        "evaluation_seconds": costs.get(cost_of(evaluations, split), 0.0),
    }


def cost_of(evaluations: str, split: str, *, work: str = "evaluate") -> str:
    """The name of the costs of a method's evaluations or likelihoods."""
    return "-".join([work, *([] if split == "test" else [split]), evaluations])
