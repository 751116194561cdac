"""The table of a comparison, from any state of its folder: `python pipelines/compare/table.py runs/compare`.

Reads evaluations, headers and costs; prints the table and writes table.md, table.csv, results.csv and versions.json. What was not
run is shown as missing.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from _plan import MAIN, PLAN, Cell, read_record, read_toml
from _results import ALL, MEAN, MEAN_WITHOUT, Row, rows_of
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dmole_cli.artifacts.files import replacing, write_json
from dmole_cli.artifacts.provenance import versions
from dmole_cli.errors import DmoleError
from dmole_cli.reports.continual import FORMULAS
from dmole_cli.reports.tables import MISSING, TITLES, UNITS, points

PACKAGES = ("torch", "transformers", "numpy", "pillow", "safetensors", "pyarrow")
NOTES = [
    "Mean ± sample standard deviation over the seeds; (n=2) where fewer seeds are there than planned; – where nothing is.",
    UNITS,
    "The means without CIDEr leave out the tasks that are scored with it.",
    "zero-shot never changes, so its BWT, forgetting and FWT are 0; finetune trains each task alone and joint all at once, so "
    "that they have no such quantities: Last of finetune is each task's own score.",
    "Trained: the most numbers that any stage trains. Stored: all numbers that answering after the last stage needs beside the "
    "backbone (experts, routers), and what the method remembers for the next task (EWC's Fisher information); replay's old "
    "samples are not in it.",
    "Seconds are the stages' own work, without the start of processes: prepare = profiles and routers (once for all seeds and "
    "orders), train = all tasks, evaluate = all stages and tasks; what a method shares with zero-shot is in zero-shot's.",
    "Routed right: % of samples whose active experts include their own task's, at the last stage.",
]


@dataclass(frozen=True)
class Sheet:
    """A part of the table: texts in rows and columns."""

    title: str
    heading: list[str]
    rows: list[list[str]]


class Summary:
    """Rows by what they are of, over the seeds that are there."""

    def __init__(self, rows: Iterable[Row], cells: Iterable[Cell]) -> None:
        self._values: dict[tuple[str, str, str, str], list[float]] = {}
        for row in rows:
            self._values.setdefault((row.order, row.method, row.task, row.quantity), []).append(row.value)
        self.planned = Counter((cell.order, cell.label) for cell in cells)

    def labels(self, order: str) -> list[str]:
        """Rows of the table in an order."""
        return [label for there, label in self.planned if there == order]

    def values(self, order: str, label: str, task: str, quantity: str) -> list[float]:
        """One for each seed that has it."""
        return self._values.get((order, label, task, quantity), [])

    def text(self, order: str, label: str, task: str, quantity: str) -> str:
        """Mean ± deviation as it stands in the table."""
        values, planned = self.values(order, label, task, quantity), self.planned[order, label]
        if not values:
            return MISSING
        spread = f" ± {points(stdev(values))}" if len(values) > 1 else ""
        return points(fmean(values)) + spread + (f" (n={len(values)})" if len(values) < planned else "")

    def count(self, order: str, label: str, quantity: str) -> str:
        """A whole number; the largest where seeds differ."""
        values = self.values(order, label, ALL, quantity)
        return f"{max(values):,.0f}" if values else MISSING

    def each(self) -> list[dict[str, Any]]:
        """Every mean, for table.csv."""
        found = []
        for (order, label, task, quantity), values in self._values.items():
            deviation = stdev(values) if len(values) > 1 else None
            numbers = {"mean": fmean(values), "deviation": deviation, "seeds": len(values)}
            planned = {"planned": self.planned[order, label]}
            found.append({"method": label, "order": order, "task": task, "quantity": quantity, **numbers, **planned})
        return found


def sheets_of(summary: Summary, order: str, tasks: Sequence[str]) -> list[Sheet]:
    """The parts of the table for one order: the means, what they cost, and every quantity task by task."""
    labels = summary.labels(order)

    def sheet(title: str, columns: Mapping[str, tuple[str, str]], counts: Mapping[str, str] | None = None) -> Sheet:
        counts = counts or {}
        rows = [
            [
                label,
                *(summary.count(order, label, name) for name in counts.values()),
                *(summary.text(order, label, *where) for where in columns.values()),
            ]
            for label in labels
        ]
        return Sheet(title, ["method", *counts, *columns], rows)

    means = {TITLES[name]: (MEAN, name) for name in TITLES}
    means |= {f"{TITLES[name]} w/o CIDEr": (MEAN_WITHOUT, name) for name in ("last", "avg")}
    costs = {f"{name} s": (ALL, f"{stage}_seconds") for name, stage in _STAGES.items()}
    costs["routed right %"] = (MEAN, "routed_right")
    counts = {"trained": "trainable_parameters", "stored": "stored_parameters"}
    found = [sheet("Means over the tasks", means), sheet("Parameters and seconds", costs, counts)]
    for name, title in TITLES.items():
        columns = {task: (task, name) for task in tasks}
        found.append(sheet(f"{title} per task", {**columns, "mean": (MEAN, name), "w/o CIDEr": (MEAN_WITHOUT, name)}))
    return found


_STAGES = {"prepare": "preparation", "train": "training", "evaluate": "evaluation"}


def headline(summary: Summary, order: str, plan: Mapping[str, Any]) -> list[str]:
    """How far ahead of the best rival the plan's own method is, for Last and AVG, relative."""
    lines, ours = [], plan.get("ours", "")
    for name in ("last", "avg"):
        own = summary.values(order, ours, MEAN, name)
        rivals = {r: fmean(v) for r in plan.get("rivals", ()) if (v := summary.values(order, r, MEAN, name))}
        if own and rivals and max(rivals.values()) > 0:
            best = max(rivals, key=rivals.__getitem__)
            ahead = 100 * (fmean(own) / rivals[best] - 1)
            lines.append(
                f"Mean {TITLES[name]} of {ours}: {ahead:+.1f} % of that of {best}, the best of {', '.join(rivals)}."
            )
    return lines


def footnotes() -> list[str]:
    """What every column means."""
    return [*FORMULAS.values(), *NOTES]


def markdown(sheets: Sequence[Sheet]) -> list[str]:
    """Sheets as Markdown tables."""
    lines = []
    for sheet in sheets:
        lines += [f"**{sheet.title}**", "", _line(sheet.heading), "|---" + "|---:" * (len(sheet.heading) - 1) + "|"]
        lines += [*map(_line, sheet.rows), ""]
    return lines


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def show(sheets: Sequence[Sheet], console: Console) -> None:
    """Sheets as tables of a terminal."""
    for sheet in sheets:
        table = Table(
            title=Text(sheet.title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
        )
        for number, name in enumerate(sheet.heading):
            table.add_column(Text(name), justify="right" if number else "left", no_wrap=number == 0)
        for row in sheet.rows:
            table.add_row(*map(Text, row))
        console.print(table)


def write_results(folder: Path, results: Path, plan: Mapping[str, Any]) -> None:
    """Write and print the main table of a comparison's folder.

    Raises:
        DmoleError: nothing was ever run there, or a file is damaged.
    """
    record = read_record(folder)
    cells = [cell for cell in record.cells if cell.group == MAIN]
    if not cells:
        raise DmoleError(f"{folder} holds no comparison", f"make it with: python pipelines/compare/run.py {folder}")
    rows = rows_of(folder, record, group=MAIN)
    summary, console = Summary(rows, cells), _console()
    lines = ["# The comparison", ""]
    for order in dict.fromkeys(cell.order for cell in cells):
        title = f"Order {order}: {' → '.join(record.orders[order])}"
        sheets, said = sheets_of(summary, order, record.orders[order]), headline(summary, order, plan)
        lines += [f"## {title}", "", *markdown(sheets), *(line for text in said for line in (text, ""))]
        console.print(Text(title, style="bold underline"))
        show(sheets, console)
        console.print(*map(Text, said), sep="\n")
    lines += ["## What the columns mean", "", *(f"- {note}" for note in footnotes())]
    console.print(*(Text(note, style="dim") for note in footnotes()), sep="\n")
    _write_text(results / "table.md", "\n".join(lines) + "\n")
    write_csv(results / "results.csv", [asdict(row) for row in rows], [f.name for f in fields(Row)])
    columns = ["method", "order", "task", "quantity", "mean", "deviation", "seeds", "planned"]
    write_csv(results / "table.csv", summary.each(), columns)
    write_json(results / "versions.json", provenance(cells))
    print(f"written: {results}", file=sys.stderr)


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=160)


def provenance(cells: Sequence[Cell]) -> dict[str, Any]:
    """The command that makes the results again, and what made them; no times and no places."""
    seeds = sorted({cell.seed for cell in cells})
    command = f"python pipelines/compare/run.py runs/compare --seeds {' '.join(map(str, seeds))}"
    return {"command": command, "commit": _commit(), "python": sys.version.split()[0], "packages": versions(*PACKAGES)}


def _commit() -> str | None:
    """Of the code, where it lies in a repository; with a + where it was changed since."""
    asked = ["git", "describe", "--always", "--dirty=+", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(asked, cwd=PLAN.parent, capture_output=True, text=True, check=True).stdout.strip() or None
    except (OSError, subprocess.CalledProcessError):
        return None


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Write rows as CSV; a missing value is an empty field."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def main() -> None:
    """Print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the comparison")
    parser.add_argument("--plan", type=Path, default=PLAN, help="what is compared [pipelines/compare/plan.toml]")
    parser.add_argument("--results", type=Path, metavar="DIR", help="where the tables go [FOLDER/results]")
    options = parser.parse_args()
    try:
        write_results(options.folder, options.results or options.folder / "results", read_toml(options.plan))
    except DmoleError as error:
        sys.exit(f"error: {error.message}\n  -> {error.hint}")


if __name__ == "__main__":
    main()
