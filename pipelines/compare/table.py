"""Write the tables of a comparison, finished or not: `python pipelines/compare/table.py runs/compare`.

Reads evaluations, headers and costs; prints the tables and writes table.md, table.csv and results.csv, for the studies studies.md
and studies.csv, and versions.json. Missing results are shown as missing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from _differences import ceiling, gain_sheet, interval_sheet, study_sheet
from _files import read_toml, write_csv, write_lines
from _plan import MAIN, PLAN, Record, read_record
from _program import reported_errors
from _provenance import provenance
from _results import Row, rows_of
from _sheets import SUMMARY_COLUMNS, Sheet, Summary, main_sheets, markdown, show
from rich.console import Console
from rich.text import Text

from dmole_cli.artifacts.files import write_json
from dmole_cli.errors import DmoleError
from dmole_cli.reports.collect import KNOWLEDGE
from dmole_cli.reports.continual import AVERAGES, FORMULAS
from dmole_cli.reports.tables import CAPPED, UNITS

BEST_RIVAL = (
    "Best rival: the highest mean of those of {} that have run, over the seeds that all of them have; they use neither old data "
    "nor the identity of the task."
)
NOTES = [
    *FORMULAS.values(),
    *AVERAGES.values(),
    "Mean ± sample standard deviation over the seeds; (n=2): only two of the planned seeds have finished; –: no value.",
    "95 % confidence intervals are those of Student's t distribution over the seeds, for differences over pairs of the same "
    "seed. They are about other seeds of the training, not about other test samples or tasks.",
    UNITS,
    CAPPED,
    "w/o CIDEr: mean over the tasks that are not scored with CIDEr.",
    "zero-shot is never trained, so its BWT, forgetting and FWT are 0. finetune trains each task alone and joint all tasks at "
    "once, so these quantities are not defined for them; Last of finetune is each task's own score.",
    "Trained: the largest number of parameters that is trained for a task. Stored: all values that predictions after the last "
    "task need beside the backbone (experts, routers) and that the method saves for the next task (EWC's Fisher information), "
    "without the old samples of replay.",
    "Seconds: time spent in the stages, without starting processes. prepare: profile and train-router, once for all seeds and "
    "orders; train: all tasks; evaluate: all tasks after every task, where results shared with zero-shot count for zero-shot.",
    f"Ranked first, per task R[T,i] - R[i,i] of: {KNOWLEDGE['ranked_first']}. Closed: the mean over those of the first T-1 tasks "
    "whose possible answers are known.",
    f"Log-likelihood, R[T,i] - R[i,i] in nats of: {KNOWLEDGE['log_likelihood']}.",
    "Routed right: % of samples whose active experts include that of their own task, after the last task.",
]


def write_results(
    folder: Path, results: Path, plan: Mapping[str, Any], *, shown: Collection[str] | None = None
) -> None:
    """Write the tables of a comparison and print those of the groups `shown` (`main`, studies; default: all).

    Raises:
        DmoleError: the folder has no experiments, or a file is damaged.
    """
    record = read_record(folder)
    groups = dict.fromkeys(experiment.group for experiment in record.experiments)
    if not groups:
        raise DmoleError(
            f"{folder} is not the folder of a comparison", f"create it with: python pipelines/compare/run.py {folder}"
        )
    console = Console()
    console = console if console.is_terminal else Console(width=200)
    rows = {group: rows_of(folder, record, group=group) for group in groups}
    studies = [group for group in groups if group != MAIN]
    if MAIN in groups:
        _write_main(results, record, rows[MAIN], plan, console if shown is None or MAIN in shown else None)
    if studies:
        _write_studies(
            results, record, {name: rows[name] for name in studies}, plan, console, studies if shown is None else shown
        )
    console.print(*(Text(note, style="dim") for note in NOTES), sep="\n")
    write_json(results / "versions.json", provenance(record.experiments, folder.resolve().name, record.config))
    print(f"written: {results}", file=sys.stderr)


def _write_main(
    results: Path, record: Record, rows: Sequence[Row], plan: Mapping[str, Any], console: Console | None
) -> None:
    experiments = [experiment for experiment in record.experiments if experiment.group == MAIN]
    summary, lines = Summary(rows, experiments), ["# The comparison", ""]
    for order in (order for order in record.orders if any(experiment.order == order for experiment in experiments)):
        title = f"Order {order}: {' → '.join(record.orders[order])}"
        sheets = main_sheets(summary, order, record.orders[order])
        gains = gain_sheet(summary, order, plan)
        sheets[1:1] = [interval_sheet(summary, order), *([gains] if gains else [])]
        comments = [BEST_RIVAL.format(", ".join(plan["rivals"]))] if gains else []
        comments += ceiling(summary, order, record.orders, plan)
        lines += [f"## {title}", "", *markdown(sheets), *(line for text in comments for line in (text, ""))]
        _print(console, title, sheets, comments)
    write_lines(results / "table.md", [*lines, "## What the columns mean", "", *(f"- {note}" for note in NOTES)])
    write_csv(results / "results.csv", [asdict(row) for row in rows], [f.name for f in fields(Row)])
    write_csv(results / "table.csv", summary.each(), SUMMARY_COLUMNS)


def _write_studies(
    results: Path,
    record: Record,
    rows: Mapping[str, Sequence[Row]],
    plan: Mapping[str, Any],
    console: Console,
    shown: Collection[str],
) -> None:
    lines, values = ["# Studies", ""], []
    for name in rows:
        experiments = [experiment for experiment in record.experiments if experiment.group == name]
        summary, title = Summary(rows[name], experiments), plan.get("studies", {}).get(name, {}).get("title", name)
        orders = dict.fromkeys(experiment.order for experiment in experiments)
        sheets = [study_sheet(summary, f"{name}: {title}", order, record.orders[order]) for order in orders]
        lines += markdown(sheets)
        values += [{"study": name, **asdict(row)} for row in rows[name]]
        _print(console if name in shown else None, "", sheets, [])
    lines += [
        "Last, rel. %: the mean Last relative to the first row's; difference: in points. Both over the same seeds.",
        "",
    ]
    write_lines(results / "studies.md", [*lines, *(f"- {note}" for note in NOTES)])
    write_csv(results / "studies.csv", values, ["study", *(f.name for f in fields(Row))])


def _print(console: Console | None, title: str, sheets: Sequence[Sheet], comments: Sequence[str]) -> None:
    if console is not None:
        if title:
            console.print(Text(title, style="bold underline"))
        show(sheets, console)
        for line in comments:
            console.print(Text(line))


def main() -> None:
    """Print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the comparison")
    parser.add_argument("--plan", type=Path, default=PLAN, help="titles and rivals [pipelines/compare/plan.toml]")
    parser.add_argument("--results", type=Path, metavar="DIR", help="output folder of the tables [FOLDER/results]")
    options = parser.parse_args()
    with reported_errors():
        write_results(options.folder, options.results or options.folder / "results", read_toml(options.plan))


if __name__ == "__main__":
    main()
