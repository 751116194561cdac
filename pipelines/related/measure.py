"""Measure routing between related tasks: `python pipelines/related/measure.py runs/related-0 runs/related-1 ...`.

The runs are those of one configuration, one per seed. Routers are enough for the first two tables; the others need evaluations of
the split. All values are percent or points, means over the runs with a 95 % interval (Student's t):

- `joins`: training samples that the router of an earlier task accepts, before the task's own router exists: while the task is
  trained, the expert of the nearest such router transfers. By task and factor on all thresholds, with the earlier tasks.
- `confusion`: samples of a task (row) by the task of their first expert (column) after the last task, for each factor. The tasks
  that are never trained come last: a router accepts those that are not in the column `none`.
- `Last` of every evaluated method and routing rule, e.g. d-mole, d-mole@top-1, d-mole@oracle.
- `transfer`: score with transfer minus score without it, by the number of training rows: directly after the task's own training
  and after the last task. `--without` names runs that were trained with `--no-transfer`, in the order of the others.

Routers alone are made by `dmole train-router --run RUN --config pipelines/related/dmole.toml`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from dmole_cli.artifacts.router import read_router
from dmole_cli.artifacts.run import Run
from dmole_cli.cli.workspace import Workspace, workspace
from dmole_cli.errors import DmoleError
from dmole_cli.reports.collect import MethodReport, collect
from dmole_cli.reports.estimates import estimate
from dmole_cli.routing.autoencoder import from_tensors
from dmole_cli.routing.features import routing_features
from dmole_cli.routing.rules import top_candidates
from dmole_cli.settings.reading import read_settings

CONFIG = Path(__file__).with_name("dmole.toml")
# On thresholds of twice the 0.99 quantile of a router's losses: 0.5 is the quantile itself.
FACTORS = (0.4, 0.5, 0.75, 1.0, 1.25)
NONE = "none"
LARGE = 1000  # tasks with more training rows than this are large

Key = tuple[str, ...]
Values = dict[Key, float]
Losses = list[list[float]]


class Routed:
    """The reconstruction losses of a run's samples under its routers.

    Args:
        work: the run, opened with its configuration.
    """

    def __init__(self, work: Workspace) -> None:
        self.work, self.tasks, self.unseen = work, work.settings.tasks, work.settings.unseen
        files = [read_router(work.run.router(task)) for task in self.tasks]
        self.thresholds = [file.threshold for file in files]
        self._routers = [from_tensors(file.tensors, decoder=file.decoder) for file in files]

    def losses(self, task: str, split: str) -> Losses:
        """Losses of a split [samples][routers]."""
        work = self.work
        features = routing_features(task, split, data=work.data, backbone=work.model.load(), run=work.run)
        columns = [router.losses(features).tolist() for router in self._routers]
        return [list(row) for row in zip(*columns, strict=True)]

    def shares(self, losses: Losses, factor: float, *, routers: int) -> dict[str, float]:
        """Percent of samples by the task of their first expert, among the first `routers` tasks; `none` where none accepts."""
        scaled = [factor * threshold for threshold in self.thresholds[:routers]]
        first = Counter(tuple(top_candidates(row[:routers], scaled, most=1)) for row in losses)
        named = {(self.tasks[found[0]] if found else NONE): count for found, count in first.items()}
        return {name: 100 * named.get(name, 0) / len(losses) for name in (*self.tasks[:routers], NONE)}


def joins(routed: Routed, factors: Sequence[float]) -> Values:
    """(task, factor, earlier task) -> percent of training samples that join its expert."""
    found: Values = {}
    for index, task in enumerate(routed.tasks[1:], start=1):
        losses = routed.losses(task, "train")
        for factor in factors:
            shares = routed.shares(losses, factor, routers=index)
            found |= {(task, f"{factor:g}", name): share for name, share in shares.items() if name != NONE}
    return found


def confusion(routed: Routed, factors: Sequence[float], split: str) -> Values:
    """(task, factor, first expert) -> percent of samples of a split, after the last task."""
    found: Values = {}
    for task in (*routed.tasks, *routed.unseen):
        losses = routed.losses(task, split)
        for factor in factors:
            shares = routed.shares(losses, factor, routers=len(routed.tasks))
            found |= {(task, f"{factor:g}", name): share for name, share in shares.items()}
    return found


def scores(reports: Iterable[MethodReport]) -> Values:
    """(method with its routing, task or `mean`) -> Last, where evaluated."""
    found: Values = {}
    for report in reports:
        named = {**dict(zip(report.tasks, report.quantities["last"], strict=True)), "mean": report.mean["last"]}
        found |= {(report.method, task): value for task, value in named.items() if value is not None}
    return found


def transfer(reports: tuple[MethodReport, MethodReport], rows: Mapping[str, int]) -> Values:
    """(rows, task or `mean`, moment) -> points of the first run, with transfer, minus those of the second."""
    found: Values = {}
    sizes: dict[tuple[str, str], list[float]] = defaultdict(list)
    for index, task in enumerate(reports[0].tasks[1:], start=1):  # nothing transfers to the first task
        size = str(rows[task]) if rows[task] <= LARGE else "large"
        for moment, stage in (("learnt", index + 1), ("last", len(reports[0].tasks))):
            with_it, without = (report.matrix[stage][index] for report in reports)
            if with_it is not None and without is not None:
                found[size, task, moment] = with_it - without
                sizes[size, moment].append(with_it - without)
    return found | {(size, "mean", moment): fmean(values) for (size, moment), values in sizes.items()}


def estimates(runs: Sequence[Values]) -> dict[Key, dict[str, Any]]:
    """Mean, half-width of the 95 % interval (None for one run) and number of runs, for what all runs have."""
    found = {}
    for key in runs[0] if runs else ():
        values = [run[key] for run in runs if key in run]
        if len(values) == len(runs):
            over = estimate(values)
            half = (over.ends[1] - over.ends[0]) / 2 if over.ends else None
            found[key] = {"mean": over.mean, "half_width": half, "runs": over.seeds}
    return found


def shown(found: Mapping[str, Any] | None) -> str:
    """Mean ± half-width."""
    if found is None:
        return "–"
    half = found["half_width"]
    return f"{found['mean']:.1f}" + (f" ± {half:.1f}" if half else "")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """A Markdown table."""
    yield from ("", f"| {' | '.join(head)} |", "|" + "---|" * len(head))
    yield from (f"| {' | '.join(row)} |" for row in rows)


def join_table(
    found: Mapping[Key, Mapping[str, Any]], factors: Sequence[str], short: Mapping[str, str]
) -> Iterator[str]:
    """A row per task: the share that joins, and the earlier tasks that get at least 1 %."""
    rows = []
    for task in dict.fromkeys(key[0] for key in found):
        cells = []
        for factor in factors:
            to = {key[2]: one for key, one in found.items() if key[:2] == (task, factor)}
            named = [f"{short[name]} {shown(one)}" for name, one in to.items() if one["mean"] >= 1]
            total = sum(one["mean"] for one in to.values())
            cells.append(f"{total:.1f}" + (f" ({', '.join(named)})" if named else ""))
        rows.append([short[task], *cells])
    yield from table(["joins", *(f"x {factor}" for factor in factors)], rows)


def confusion_tables(
    found: Mapping[Key, Mapping[str, Any]], factors: Sequence[str], short: Mapping[str, str]
) -> Iterator[str]:
    """A table per factor: a row per task, a column per first expert."""
    columns = list(dict.fromkeys(key[2] for key in found))
    for factor in factors:
        rows = [
            [short[task], *(shown(found.get((task, factor, name))) for name in columns)]
            for task in dict.fromkeys(key[0] for key in found)
        ]
        yield from table([f"first expert, x {factor}", *(short.get(name, name) for name in columns)], rows)


def flat_table(
    title: str, found: Mapping[Key, Mapping[str, Any]], columns: Sequence[str], *, last: bool
) -> Iterator[str]:
    """A row per key without the part that the columns name: its last part, or else its first."""
    if found:
        rest = list(dict.fromkeys(key[:-1] if last else key[1:] for key in found))
        cells = [[shown(found.get((*key, name) if last else (name, *key))) for name in columns] for key in rest]
        yield from table([title, *columns], [[" ".join(key), *row] for key, row in zip(rest, cells, strict=True)])


def measured(options: argparse.Namespace) -> tuple[dict[str, dict[Key, dict[str, Any]]], tuple[str, ...]]:
    """All parts over all runs, and the names of the tasks.

    Raises:
        DmoleError: routers are missing; or there is nothing to compare with a run of `--without`.
    """
    settings = read_settings(options.config)
    works = [workspace(settings, Run(root, options.shared)) for root in options.runs]
    tasks = works[0].settings.tasks
    rows = {task: len(works[0].data.samples(task, "train")) for task in tasks}
    routed = [Routed(work) for work in works]
    reports = [collect(work.run, tasks=tasks, split=options.split) for work in works]
    pairs = []
    # Without `--without` there are no pairs; otherwise `main` has checked that there is one for every run.
    for run, other in zip(options.runs[: len(options.without)], options.without, strict=True):
        first, second = (
            collect(Run(root, options.shared), tasks=tasks, methods=[options.method], split=options.split)[0]
            for root in (run, other)
        )
        pairs.append(transfer((first, second), rows))
        if not pairs[-1]:
            message = (
                f"{options.method} has no evaluations of the {options.split} split to compare in both {run} and {other}"
            )
            words = f"--method {options.method} --split {options.split} --stage all"
            commands = dict.fromkeys(f"dmole evaluate --run {root} {words}" for root in (run, other))
            raise DmoleError(message, "; ".join(commands))
    found = {
        "joins": estimates([joins(one, options.factors) for one in routed]),
        "confusion": estimates([confusion(one, options.factors, options.split) for one in routed]),
        "scores": estimates([scores(one) for one in reports]),
        "transfer": estimates(pairs),
    }
    return found, (*tasks, *works[0].settings.unseen)


def main() -> None:
    """Print the tables, or with `--json` the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="run directories, one per seed")
    parser.add_argument("--without", type=Path, nargs="*", default=[], help="their counterparts without transfer")
    parser.add_argument("--shared", type=Path, help="folder of their shared profiles, features and routers")
    parser.add_argument("--split", default="test", choices=("test", "validation"))
    parser.add_argument("--method", default="d-mole", help="method of the table `transfer` [d-mole]")
    parser.add_argument("--factors", type=float, nargs="+", default=list(FACTORS), help="on all thresholds")
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if len(options.without) not in (0, len(options.runs)):
        parser.error("--without needs as many run directories as there are runs, in the same order")
    try:
        found, names = measured(options)
    except DmoleError as error:
        sys.exit(f"error: {error.message}\n  -> {error.hint}")
    if options.json:
        parts = {part: [{"of": list(key), **one} for key, one in values.items()] for part, values in found.items()}
        print(json.dumps(parts, indent=1))
        return
    short = {name: name.removeprefix("related-") for name in names}
    factors = [f"{factor:g}" for factor in options.factors]
    print("\n".join(tables(found, factors, short)).strip())


def tables(
    found: Mapping[str, Mapping[Key, Mapping[str, Any]]], factors: Sequence[str], short: Mapping[str, str]
) -> Iterator[str]:
    """All tables that have values; `short` names tasks."""
    yield from join_table(found["joins"], factors, short)
    yield from confusion_tables(found["confusion"], factors, short)
    score_columns = list(dict.fromkeys(key[0] for key in found["scores"]))
    yield from flat_table("Last", found["scores"], score_columns, last=False)
    yield from flat_table("with - without transfer", found["transfer"], ("learnt", "last"), last=True)


if __name__ == "__main__":
    main()
