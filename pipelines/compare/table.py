"""The tables of a comparison, from any state of its folder: `python pipelines/compare/table.py runs/compare`.

Reads evaluations, headers and costs; prints the tables and writes table.md, table.csv and results.csv, the same for the studies
(studies.md, studies.csv), and versions.json. What was not run is shown as missing.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from statistics import fmean
from typing import Any

from _plan import MAIN, PLAN, Cell, Record, read_record, read_toml
from _results import MEAN, Row, rows_of
from _sheets import SUMMARY_COLUMNS, Sheet, Summary, main_sheets, markdown, show, study_sheet, write_csv
from _work import write_lines
from rich.console import Console
from rich.text import Text

from dmole_cli.artifacts.files import write_json
from dmole_cli.artifacts.provenance import versions
from dmole_cli.errors import DmoleError
from dmole_cli.reports.collect import KNOWLEDGE
from dmole_cli.reports.continual import FORMULAS
from dmole_cli.reports.tables import TITLES, UNITS, points

PACKAGES = ("torch", "transformers", "numpy", "pillow", "safetensors", "pyarrow")
NOTES = [
    *FORMULAS.values(),
    "Mean ± sample standard deviation over the seeds; (n=2) where fewer seeds are there than planned; – where nothing is.",
    UNITS,
    "The means without (w/o) CIDEr leave out the tasks that are scored with it.",
    "zero-shot never changes, so its BWT, forgetting and FWT are 0; finetune trains each task alone and joint all at once, so "
    "that they have no such quantities: Last of finetune is each task's own score.",
    "Trained: the most numbers that any stage trains. Stored: all numbers that answering after the last stage needs beside the "
    "backbone (experts, routers), and what the method remembers for the next task (EWC's Fisher information); replay's old "
    "samples are not in it.",
    "Seconds are the stages' own work, without the start of processes: prepare = profiles and routers (once for all seeds and "
    "orders), train = all tasks, evaluate = all stages and tasks; what a method shares with zero-shot is in zero-shot's.",
    f"Ranked first, per task R[T,i] - R[i,i] of: {KNOWLEDGE['ranked_first']}. Closed: the mean over those of the first T-1 tasks "
    "whose possible answers are known.",
    f"Log-likelihood, R[T,i] - R[i,i] in nats of: {KNOWLEDGE['log_likelihood']}.",
    "Routed right: % of samples whose active experts include their own task's, at the last stage.",
]


def write_results(
    folder: Path, results: Path, plan: Mapping[str, Any], *, shown: Collection[str] | None = None
) -> None:
    """Write the tables of a comparison's folder, and print those of some groups (`main`, studies; all by default).

    Raises:
        DmoleError: nothing was ever run there, or a file is damaged.
    """
    record = read_record(folder)
    groups = dict.fromkeys(cell.group for cell in record.cells)
    if not groups:
        raise DmoleError(f"{folder} holds no comparison", f"make it with: python pipelines/compare/run.py {folder}")
    console = Console()
    console = console if console.is_terminal else Console(width=200)
    rows = {group: rows_of(folder, record, group=group) for group in groups}
    studies = [group for group in groups if group != MAIN]
    if MAIN in groups:
        _write_main(results, record, rows[MAIN], plan, console if shown is None or MAIN in shown else None)
    if studies:
        loud = [name for name in studies if shown is None or name in shown]
        _write_studies(results, record, {name: rows[name] for name in studies}, plan, console, loud)
    console.print(*(Text(note, style="dim") for note in NOTES), sep="\n")
    write_json(results / "versions.json", provenance(record.cells))
    print(f"written: {results}", file=sys.stderr)


def _write_main(
    results: Path, record: Record, rows: Sequence[Row], plan: Mapping[str, Any], console: Console | None
) -> None:
    cells = [cell for cell in record.cells if cell.group == MAIN]
    summary, lines = Summary(rows, cells), ["# The comparison", ""]
    for order in (order for order in record.orders if any(cell.order == order for cell in cells)):
        title = f"Order {order}: {' → '.join(record.orders[order])}"
        sheets = main_sheets(summary, order, record.orders[order])
        said = [*headline(summary, order, plan), *ceiling(summary, order, record.orders, plan)]
        lines += [f"## {title}", "", *markdown(sheets), *(line for text in said for line in (text, ""))]
        _print(console, title, sheets, said)
    write_lines(results / "table.md", [*lines, "## What the columns mean", "", *(f"- {note}" for note in NOTES)])
    write_csv(results / "results.csv", [asdict(row) for row in rows], [f.name for f in fields(Row)])
    write_csv(results / "table.csv", summary.each(), SUMMARY_COLUMNS)


def _write_studies(
    results: Path,
    record: Record,
    rows: Mapping[str, Sequence[Row]],
    plan: Mapping[str, Any],
    console: Console,
    loud: Sequence[str],
) -> None:
    lines, values = ["# Studies", ""], []
    for name in rows:
        cells = [cell for cell in record.cells if cell.group == name]
        summary, title = Summary(rows[name], cells), plan.get("studies", {}).get(name, {}).get("title", name)
        sheets = [study_sheet(summary, f"{name}: {title}", o, record.orders[o]) for o in {c.order: 0 for c in cells}]
        lines += markdown(sheets)
        values += [{"study": name, **asdict(row)} for row in rows[name]]
        _print(console if name in loud else None, "", sheets, [])
    lines += ["Last, rel. %: the mean Last relative to the first row's.", ""]
    write_lines(results / "studies.md", [*lines, *(f"- {note}" for note in NOTES)])
    write_csv(results / "studies.csv", values, ["study", *(f.name for f in fields(Row))])


def _print(console: Console | None, title: str, sheets: Sequence[Sheet], said: Sequence[str]) -> None:
    if console is not None:
        if title:
            console.print(Text(title, style="bold underline"))
        show(sheets, console)
        for line in said:
            console.print(Text(line))


def headline(summary: Summary, order: str, plan: Mapping[str, Any]) -> list[str]:
    """How far ahead of the best rival each of the plan's own rows is, for Last and AVG, relative."""
    lines = []
    for name in ("last", "avg"):
        rivals = {r: fmean(v) for r in plan.get("rivals", ()) if (v := summary.values(order, r, MEAN, name))}
        if not rivals or max(rivals.values()) <= 0:
            continue
        best = max(rivals, key=rivals.__getitem__)
        for row in plan.get("ours", ()):
            if own := summary.values(order, row, MEAN, name):
                ahead = 100 * (fmean(own) / rivals[best] - 1)
                lines.append(
                    f"Mean {TITLES[name]} of {row} beside {best}, the best of {', '.join(rivals)}: {ahead:+.1f} %."
                )
    return lines


def ceiling(summary: Summary, order: str, orders: Mapping[str, Sequence[str]], plan: Mapping[str, Any]) -> list[str]:
    """How far ahead anybody could be: each task learnt as well as alone, never forgotten, and zero-shot until its turn.

    A stream that the pretrained backbone half knows leaves little room above a method that hardly changes it; this says how
    much. zero-shot and finetune do not depend on the order, so those of any order serve.
    """

    def alone(label: str, task: str) -> float | None:
        found = [v for name in orders for v in summary.values(name, label, task, "last")]
        return fmean(found) if found else None

    tasks = orders[order]
    before, after = [alone("zero-shot", task) for task in tasks], [alone("finetune", task) for task in tasks]
    rivals = [fmean(v) for r in plan.get("rivals", ()) if (v := summary.values(order, r, MEAN, "avg"))]
    known = [(b, a) for b, a in zip(before, after, strict=True) if b is not None and a is not None]
    if len(known) < len(tasks) or not rivals or max(rivals) <= 0:
        return []
    stages = len(tasks)
    top = fmean((b * place + a * (stages - place)) / stages for place, (b, a) in enumerate(known))
    floor, ahead = fmean(b for b, _ in known), 100 * (top / max(rivals) - 1)
    return [
        f"AVG of zero-shot is {points(floor)}. With every task at finetune's score from its turn on and zero-shot before, "
        f"AVG would be {points(top)}: {ahead:+.1f} % beside the best rival."
    ]


def provenance(cells: Sequence[Cell]) -> dict[str, Any]:
    """The commands that make the results again, and what made them; no times and no places."""
    seeds: dict[str, set[int]] = {}
    for cell in cells:
        seeds.setdefault(cell.group, set()).add(cell.seed)
    together: dict[str, list[str]] = {}
    for group, those in seeds.items():
        together.setdefault(" ".join(map(str, sorted(those))), []).append(group)
    commands = [
        f"python pipelines/compare/run.py runs/compare --only {' '.join(groups)} --seeds {those}"
        for those, groups in together.items()
    ]
    return {
        "commands": commands,
        "commit": _commit(),
        "python": sys.version.split()[0],
        "packages": versions(*PACKAGES),
    }


def _commit() -> str | None:
    """Of the code, where it lies in a repository; with a + where it was changed since."""
    asked = ["git", "describe", "--always", "--dirty=+", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(asked, cwd=PLAN.parent, capture_output=True, text=True, check=True).stdout.strip() or None
    except (OSError, subprocess.CalledProcessError):
        return None


def main() -> None:
    """Print and write the tables."""
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
