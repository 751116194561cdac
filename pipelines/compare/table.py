"""Write the tables of a comparison, finished or not: `python pipelines/compare/table.py runs/compare`.

Reads evaluations, headers and costs; prints the tables and writes table.md, table.csv and results.csv, for the studies studies.md
and studies.csv, and versions.json. Missing results are shown as missing.
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

from _files import read_toml, write_csv, write_lines
from _plan import MAIN, PLAN, Experiment, Record, read_record
from _program import reported_errors
from _results import MEAN, Row, rows_of
from _sheets import SUMMARY_COLUMNS, Sheet, Summary, main_sheets, markdown, show, study_sheet
from rich.console import Console
from rich.text import Text

from dmole_cli.artifacts.files import write_json
from dmole_cli.artifacts.provenance import versions
from dmole_cli.errors import DmoleError
from dmole_cli.reports.collect import KNOWLEDGE
from dmole_cli.reports.continual import AVERAGES, FORMULAS
from dmole_cli.reports.tables import CAPPED, TITLES, UNITS, points

PACKAGES = ("torch", "transformers", "numpy", "pillow", "safetensors", "pyarrow")
NOTES = [
    *FORMULAS.values(),
    *AVERAGES.values(),
    "Mean ± sample standard deviation over the seeds; (n=2): only two of the planned seeds have finished; –: no value.",
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
    write_json(results / "versions.json", provenance(record.experiments))
    print(f"written: {results}", file=sys.stderr)


def _write_main(
    results: Path, record: Record, rows: Sequence[Row], plan: Mapping[str, Any], console: Console | None
) -> None:
    experiments = [experiment for experiment in record.experiments if experiment.group == MAIN]
    summary, lines = Summary(rows, experiments), ["# The comparison", ""]
    for order in (order for order in record.orders if any(experiment.order == order for experiment in experiments)):
        title = f"Order {order}: {' → '.join(record.orders[order])}"
        sheets = main_sheets(summary, order, record.orders[order])
        comments = [*headline(summary, order, plan), *ceiling(summary, order, record.orders, plan)]
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
    lines += ["Last, rel. %: the mean Last relative to the first row's.", ""]
    write_lines(results / "studies.md", [*lines, *(f"- {note}" for note in NOTES)])
    write_csv(results / "studies.csv", values, ["study", *(f.name for f in fields(Row))])


def _print(console: Console | None, title: str, sheets: Sequence[Sheet], comments: Sequence[str]) -> None:
    if console is not None:
        if title:
            console.print(Text(title, style="bold underline"))
        show(sheets, console)
        for line in comments:
            console.print(Text(line))


def headline(summary: Summary, order: str, plan: Mapping[str, Any]) -> list[str]:
    """Mean Last and AVG of the plan's own rows relative to those of the best rival."""
    lines = []
    for name in ("last", "avg"):
        rivals = {r: fmean(v) for r in plan.get("rivals", ()) if (v := summary.values(order, r, MEAN, name))}
        if not rivals or max(rivals.values()) <= 0:
            continue
        best = max(rivals, key=rivals.__getitem__)
        for row in plan.get("ours", ()):
            if own := summary.values(order, row, MEAN, name):
                gain = 100 * (fmean(own) / rivals[best] - 1)
                lines.append(
                    f"Mean {TITLES[name]} of {row} relative to {best}, the best of {', '.join(rivals)}: {gain:+.1f} %."
                )
    return lines


def ceiling(summary: Summary, order: str, orders: Mapping[str, Sequence[str]], plan: Mapping[str, Any]) -> list[str]:
    """AVG of an ideal method, relative to that of the best rival.

    The ideal method has the score of the plan's `bound.before` on each task until its turn, and that of `bound.after` from then
    on. If the pretrained backbone already solves much of the tasks, even this is little more than what a method that hardly
    changes the backbone reaches. The scores of both rows do not depend on the order, so those of any order are used.
    """
    bound = plan.get("bound")
    rivals = [fmean(v) for r in plan.get("rivals", ()) if (v := summary.values(order, r, MEAN, "avg"))]
    if not bound or not rivals or max(rivals) <= 0:
        return []
    before, after = bound["before"], bound["after"]
    scores = [
        [[v for name in orders for v in summary.values(name, label, task, "last")] for label in (before, after)]
        for task in orders[order]
    ]
    if not all(values for pair in scores for values in pair):
        return []
    known = [(fmean(low), fmean(high)) for low, high in scores]
    count = len(known)
    top = fmean((low * turn + high * (count - turn)) / count for turn, (low, high) in enumerate(known))
    floor, gain = fmean(low for low, _ in known), 100 * (top / max(rivals) - 1)
    return [
        f"AVG of {before} is {points(floor)}. With the score of {before} on every task until its turn and that of {after} from "
        f"then on, AVG would be {points(top)}: {gain:+.1f} % relative to the best rival."
    ]


def provenance(experiments: Sequence[Experiment]) -> dict[str, Any]:
    """The commands that reproduce the results, the commit and the versions; no times and no paths."""
    seeds: dict[str, set[int]] = {}
    for experiment in experiments:
        seeds.setdefault(experiment.group, set()).add(experiment.seed)
    groups_by_seeds: dict[str, list[str]] = {}
    for group, numbers in seeds.items():
        groups_by_seeds.setdefault(" ".join(map(str, sorted(numbers))), []).append(group)
    commands = [
        f"python pipelines/compare/run.py runs/compare --only {' '.join(groups)} --seeds {numbers}"
        for numbers, groups in groups_by_seeds.items()
    ]
    return {
        "commands": commands,
        "commit": _commit(),
        "python": sys.version.split()[0],
        "packages": versions(*PACKAGES),
    }


def _commit() -> str | None:
    """The commit of the code, with a + if it has uncommitted changes; None outside of a repository."""
    command = ["git", "describe", "--always", "--dirty=+", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=PLAN.parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip() or None


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
