"""Tables of means over seeds: computed from rows, shown in a terminal, or as Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from _intervals import Gain, best_of, gain
from _plan import Experiment
from _results import ALL, MEAN, MEAN_WITHOUT, Row
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dmole_cli.reports.estimates import estimate
from dmole_cli.reports.tables import MISSING, TITLES, nats, points

COUNTS = {"trained": "trainable_parameters", "stored": "stored_parameters"}
SECONDS = {"prepare": "preparation_seconds", "train": "training_seconds", "evaluate": "evaluation_seconds"}
SUMMARY_COLUMNS = ["method", "order", "task", "quantity", "mean", "deviation", "low", "high", "seeds", "planned"]
BEST = "best rival"


@dataclass(frozen=True)
class Sheet:
    """A table of formatted values."""

    title: str
    heading: list[str]
    rows: list[list[str]]


class Summary:
    """Values by order, method, task and quantity, over the finished seeds."""

    def __init__(self, rows: Iterable[Row], experiments: Iterable[Experiment]) -> None:
        self._values: dict[tuple[str, str, str, str], dict[int, float]] = {}
        for row in rows:
            self._values.setdefault((row.order, row.method, row.task, row.quantity), {})[row.seed] = row.value
        self.planned = Counter((experiment.order, experiment.label) for experiment in experiments)

    def labels(self, order: str) -> list[str]:
        """The labels of the table's rows in an order."""
        return [label for name, label in self.planned if name == order]

    def values(self, order: str, label: str, task: str, quantity: str) -> list[float]:
        """One value for each finished seed."""
        return list(self.by_seed(order, label, task, quantity).values())

    def by_seed(self, order: str, label: str, task: str, quantity: str) -> dict[int, float]:
        """Finished seed -> value."""
        return self._values.get((order, label, task, quantity), {})

    def gain(self, order: str, label: str, other: str, quantity: str, *, plan: Mapping[str, Any]) -> Gain | None:
        """The mean score of a row relative to that of another one; None without seeds that both have.

        With `BEST`, the other one is the best of the plan's rivals, over the seeds that the row and all rivals with scores have.
        """
        ours = self.by_seed(order, label, MEAN, quantity)
        found: tuple[str, Mapping[int, float]] | None = other, self.by_seed(order, other, MEAN, quantity)
        if other == BEST:
            found = self.best_rival(order, quantity, plan=plan, among=ours)
        return gain(ours, found[1], other=found[0]) if found and found[0] != label else None

    def best_rival(
        self, order: str, quantity: str, *, plan: Mapping[str, Any], among: Iterable[int] | None = None
    ) -> tuple[str, dict[int, float]] | None:
        """The plan's rival with the highest mean, and its scores by seed; see `best_of`."""
        rivals = {rival: self.by_seed(order, rival, MEAN, quantity) for rival in plan.get("rivals", ())}
        return best_of(rivals, among=among)

    def text(self, order: str, label: str, task: str, quantity: str) -> str:
        """Mean ± sample standard deviation, formatted."""
        values, planned = self.values(order, label, task, quantity), self.planned[order, label]
        if not values:
            return MISSING
        formatted = nats if quantity.startswith("log_likelihood") else points
        spread = f" ± {formatted(stdev(values))}" if len(values) > 1 else ""
        return formatted(fmean(values)) + spread + (f" (n={len(values)})" if len(values) < planned else "")

    def count(self, order: str, label: str, quantity: str) -> str:
        """An integer, formatted; the largest if seeds differ."""
        values = self.values(order, label, ALL, quantity)
        return f"{max(values):,.0f}" if values else MISSING

    def each(self) -> list[dict[str, Any]]:
        """A row (`SUMMARY_COLUMNS`) for every mean."""
        found = []
        for (order, label, task, quantity), by_seed in self._values.items():
            values = list(by_seed.values())
            known = estimate(values)
            low, high = known.ends or (None, None)
            row = {"method": label, "order": order, "task": task, "quantity": quantity, "mean": known.mean}
            row |= {"deviation": stdev(values) if len(values) > 1 else None, "low": low, "high": high}
            found.append({**row, "seeds": len(values), "planned": self.planned[order, label]})
        return found

    def sheet(
        self, title: str, order: str, columns: Mapping[str, tuple[str, str]], counts: Mapping[str, str] | None = None
    ) -> Sheet:
        """A row per method, with `counts` (column -> quantity) before the means `columns` (column -> task and quantity)."""
        counts = counts or {}
        rows = [
            [
                label,
                *(self.count(order, label, name) for name in counts.values()),
                *(self.text(order, label, *where) for where in columns.values()),
            ]
            for label in self.labels(order)
        ]
        return Sheet(title, ["method", *counts, *columns], rows)


def main_sheets(summary: Summary, order: str, tasks: Sequence[str]) -> list[Sheet]:
    """The parts of the main table for one order: means, costs, likelihoods, and every quantity per task."""
    means = {TITLES[name]: (MEAN, name) for name in TITLES} | {"MFT": (MEAN, "mft"), "MAA": (MEAN, "maa")}
    means |= {f"{TITLES[name]} w/o CIDEr": (MEAN_WITHOUT, name) for name in ("last", "avg")}
    costs = {f"{name} s": (ALL, quantity) for name, quantity in SECONDS.items()}
    costs["routed right %"] = (MEAN, "routed_right")
    found = [
        summary.sheet("Means over the tasks", order, means),
        summary.sheet("Parameters and seconds", order, costs, COUNTS),
    ]
    for name, title in TITLES.items():
        columns = {task: (task, name) for task in tasks}
        columns |= {"mean": (MEAN, name), "w/o CIDEr": (MEAN_WITHOUT, name)}
        found.append(summary.sheet(f"{title} per task", order, columns))
    return [*found[:2], *_knowledge_sheets(summary, order, tasks), *found[2:]]


def _knowledge_sheets(summary: Summary, order: str, tasks: Sequence[str]) -> list[Sheet]:
    """The change of scores beside that of likelihoods, if those were measured."""
    if not any(summary.values(order, label, MEAN, "log_likelihood_bwt") for label in summary.labels(order)):
        return []
    means = {"BWT": (MEAN, "bwt"), "BWT closed": (MEAN, "bwt_of_closed")}
    means |= {"ranked first closed": (MEAN, "ranked_first_bwt"), "log-likelihood": (MEAN, "log_likelihood_bwt")}
    found = [summary.sheet("Change since a task was trained: scores and likelihoods", order, means)]
    for title, quantity in (("Ranked first", "ranked_first_bwt"), ("Log-likelihood", "log_likelihood_bwt")):
        columns = {task: (task, quantity) for task in tasks} | {"mean": (MEAN, quantity)}
        found.append(summary.sheet(f"{title}: change since a task was trained, per task", order, columns))
    return found


def markdown(sheets: Sequence[Sheet]) -> list[str]:
    """Format sheets as Markdown."""
    lines = []
    for sheet in sheets:
        lines += [f"**{sheet.title}**", "", _line(sheet.heading), "|---" + "|---:" * (len(sheet.heading) - 1) + "|"]
        lines += [*map(_line, sheet.rows), ""]
    return lines


def _line(texts: Sequence[str]) -> str:
    return f"| {' | '.join(texts)} |"


def show(sheets: Sequence[Sheet], console: Console) -> None:
    """Print sheets."""
    for sheet in sheets:
        title = Text(sheet.title, style="bold")
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for number, name in enumerate(sheet.heading):
            table.add_column(Text(name), justify="right" if number else "left", no_wrap=number == 0)
        for row in sheet.rows:
            table.add_row(*map(Text, row))
        console.print(table)
