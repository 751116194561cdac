"""Choose every method's options on the validation splits: `python pipelines/compare/tune.py runs/tune`.

Every method starts with the same number of trials (grid.toml), in every order of the tasks. Further trials follow until a value
at most one step away, on either side of each option of the best trial, is no better. The trials run and resume like the
experiments of the comparison, with another seed; the test splits are not used. Writes tuning.csv and tuning.md, and the chosen
options to a file beside the configuration, which run.py reads.

    python pipelines/compare/tune.py runs/tune --methods seq-ft replay --orders B     # a part
    python pipelines/compare/tune.py runs/tune --methods seq-ft --force               # again, trials that diverged included
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from _bracket import Scores, Search, Trial
from _engine import add_options, engine_options, run_experiments
from _files import read_toml, write_csv, write_lines
from _options import arguments, options_beside, read_options, updated, write_options
from _plan import CONFIG, PLAN, Experiment, depends_on_order, read_record, variant_of
from _program import exit_with, reported_errors
from _results import MEAN, Row, rows_of
from _sheets import Sheet, markdown
from _trials import (
    GRID,
    GROUP,
    Place,
    experiments_for,
    forget_divergence,
    scores_of,
    searches,
    smaller,
    trial_in,
)
from _workflow import Comparison

from dmole_cli.reports.tables import MISSING, points

SHOWN = ("last", "bwt")
COLUMNS = ["method", "order", "options", "chosen", "task", "quantity", "value"]


def main() -> None:
    """Run the trials, then write their results."""
    options = _options()
    with reported_errors():
        grid, plan = read_toml(options.grid), read_toml(options.plan)
        config = smaller(read_toml(options.config), grid, options.folder)
        comparison = Comparison(options.folder, plan, config, split="validation", diagonal=True)
        chosen = searches(plan, grid, rows=options.methods, orders=options.orders)
        failed = run_trials(comparison, grid, chosen, engine=engine_options(options), force=options.force)
        found = searches(plan, grid)
        rows, scores = results_in(options.folder, grid)
        results = options.results or options.folder / "results"
        write_csv(results / "tuning.csv", table_of(options.folder, rows, found, scores), COLUMNS)
        text = report_of(grid, found, scores, rows)
        write_lines(results / "tuning.md", text)
        print("\n".join(text))
        path = options.options or options_beside(options.config)
        table = read_options(path if path.is_file() else None)
        write_options(path, updated(table, choices(plan, grid, found, scores)))
        print(f"written: {results}, {path}", file=sys.stderr)
        if failed:
            print(f"trials that failed: {'; '.join(map(str, failed))}", file=sys.stderr)
        left = [f"{row}, order {order}" for row, order in chosen if not ended(found, scores, (row, order))]
    exit_with(left, of=len(chosen), what="searches")


def run_trials(
    comparison: Comparison,
    grid: Mapping[str, Any],
    found: Mapping[Place, Search],
    *,
    engine: list[str],
    force: bool = False,
) -> list[Experiment]:
    """Run trials until no search has another one; returns those that failed for another reason than divergence.

    Finished trials are run as well: nothing is computed again, but those that were made from something else are refused. With
    `force`, all trials of these searches run again from their training on, also those that diverged.
    """
    failed: dict[str, Experiment] = {}
    if force:
        forget_divergence(comparison.folder, read_record(comparison.folder), found)
    _, scores = results_in(comparison.folder, grid)
    old, new = experiments_for(comparison.plan, grid, found, scores)
    while True:
        for experiment in run_experiments(comparison, [*old, *new], force=force, options=engine):
            failed[str(experiment)] = experiment
        force = False
        _, scores = results_in(comparison.folder, grid)
        failed = {name: one for name, one in failed.items() if not _has_score(one, scores)}
        old, new = experiments_for(comparison.plan, grid, found, scores)
        new = [experiment for experiment in new if str(experiment) not in failed]
        if not new:
            return list(failed.values())


def _has_score(experiment: Experiment, scores: Mapping[Place, Scores]) -> bool:
    place, trial = trial_in(experiment)
    return trial in scores.get(place, {})


def results_in(folder: Path, grid: Mapping[str, Any]) -> tuple[list[Row], dict[Place, dict[Trial, float]]]:
    """The rows of all finished trials in a folder, and their scores."""
    record = read_record(folder)
    rows = rows_of(folder, record, group=GROUP)
    return rows, scores_of(folder, record, rows, quantity=grid["choose"])


def ended(found: Mapping[Place, Search], scores: Mapping[Place, Scores], place: Place) -> bool:
    """Whether a search has chosen its options."""
    return found[place].chosen(scores.get(place, {})) is not None


def choices(
    plan: Mapping[str, Any],
    grid: Mapping[str, Any],
    found: Mapping[Place, Search],
    scores: Mapping[Place, Scores],
) -> dict[tuple[str, str | None], dict[str, float]]:
    """(row, order) -> the options that were chosen, for rows of the grid and those that are like them.

    The order is None for a row that does not depend on it.
    """
    chosen: dict[tuple[str, str | None], dict[str, float]] = {}
    for (row, order), search in found.items():
        if (trial := search.chosen(scores.get((row, order), {}))) is not None:
            method = variant_of(plan, row)["method"]
            for name in (row, *(like for like, other in grid.get("like", {}).items() if other == row)):
                chosen[name, order if depends_on_order(method) else None] = dict(trial)
    return chosen


def table_of(
    folder: Path, rows: list[Row], found: Mapping[Place, Search], scores: Mapping[Place, Scores]
) -> list[dict[str, Any]]:
    """The rows of tuning.csv; `chosen` is `yes` for the trial that a search which has ended has chosen."""
    trials = {e.label: trial_in(e) for e in read_record(folder).experiments if e.group == GROUP}
    chosen = {place: search.chosen(scores.get(place, {})) for place, search in found.items()}
    return [
        {
            "method": (name := trials[row.method][0][0]),
            "order": row.order,
            "options": " ".join(arguments(dict(trials[row.method][1]))[1::2]),
            "chosen": "yes" if chosen.get((name, row.order)) == trials[row.method][1] else "no",
            "task": row.task,
            "quantity": row.quantity,
            "value": row.value,
        }
        for row in rows
    ]


def report_of(
    grid: Mapping[str, Any], found: Mapping[Place, Search], scores: Mapping[Place, Scores], rows: list[Row]
) -> list[str]:
    """tuning.md: for every order the trials of each method, with the chosen one."""
    lines = [f"# Trials on the validation splits, seed {grid['seed']}", ""]
    values = {(row.method, row.order, row.quantity): row.value for row in rows if row.task == MEAN}
    for order in grid["orders"]:
        sheet = Sheet(f"Order {order}: means over the tasks", ["method", "options", "Last", "BWT"], [])
        for (name, own_order), search in found.items():
            if own_order == order:
                sheet.rows.extend(_lines(name, order, search, scores.get((name, order), {}), values))
        lines += markdown([sheet])
    lines += [
        f"Chosen (*): the highest mean {grid['choose'].capitalize()}, once no step of an option, in either direction, is better.",
        "(?): the best so far, of a search that has not ended. Methods that do not depend on the order have trials in one.",
    ]
    return lines


def _lines(
    name: str, order: str, search: Search, scores: Scores, values: Mapping[tuple[str, str, str], float]
) -> list[list[str]]:
    best, mark = search.best(scores), " *" if search.chosen(scores) else " (?)"
    lines = []
    for trial, score in search.own(scores).items():
        words = arguments(dict(trial))[1::2]
        found = [values.get(("-".join([name, *words]), order, quantity)) for quantity in SHOWN]
        texts = [MISSING if value is None else points(value) for value in found]
        texts = ["diverged", MISSING] if score == -math.inf else texts
        lines.append([name + (mark if trial == best else ""), ", ".join(words), *texts])
    return lines


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("folder", type=Path, help="folder of the trials; created if needed")
    add("--methods", nargs="+", metavar="ROW", help="rows of the grid [all]")
    add("--orders", nargs="+", metavar="NAME", help="orders of the tasks, by their names in the plan [all]")
    add("--grid", type=Path, default=GRID, help="trials [pipelines/compare/grid.toml]")
    add("--plan", type=Path, default=PLAN, help="orders and variants [pipelines/compare/plan.toml]")
    add("--config", type=Path, default=CONFIG, help="tasks and settings [pipelines/compare/dmole.toml]")
    add("--options", type=Path, metavar="FILE", help="file of the chosen options [NAME-options.toml beside NAME.toml]")
    add("--results", type=Path, metavar="DIR", help="output folder of the tables [FOLDER/results]")
    add("--force", action="store_true", help="rerun the trials of the chosen searches, also those that diverged")
    add_options(parser)
    return parser.parse_args()


if __name__ == "__main__":
    main()
