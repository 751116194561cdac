"""Choose every method's hyperparameters on the validation splits: `python pipelines/compare/tune.py runs/tune`.

Each method has the same number of trials (grid.toml). They run and resume like the experiments of the comparison, with another
seed; the test splits are not used. Writes tuning.csv and tuning.md, and prints the tables for dmole.toml and plan.toml.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from _engine import add_options, engine_options, run_experiments
from _files import read_toml, toml, write_csv, write_lines
from _plan import CONFIG, PLAN, Experiment, read_record, variant_experiment
from _program import exit_with, reported_errors
from _results import MEAN, Row, rows_of
from _sheets import Sheet, markdown
from _workflow import Comparison

from dmole_cli.data.card import load_card
from dmole_cli.errors import DmoleError
from dmole_cli.reports.tables import MISSING, points
from dmole_cli.settings.model import DEFAULT_TASKS

GRID = Path(__file__).with_name("grid.toml")
GROUP = "tuning"
SHOWN = ("last", "bwt")


def main() -> None:
    """Run the trials, then write their results."""
    options = _options()
    with reported_errors():
        grid, plan = read_toml(options.grid), read_toml(options.plan)
        config = smaller(read_toml(options.config), grid, options.folder)
        comparison = Comparison(options.folder, plan, config, split="validation", diagonal=True)
        experiments = trials(plan, grid, methods=options.methods)
        failed = run_experiments(comparison, experiments, options=engine_options(options))
        rows = rows_of(options.folder, read_record(options.folder), group=GROUP)
        write_tuning(options.results or options.folder / "results", plan, grid, rows)
    exit_with(failed, of=len(experiments), what="trials")


def trials(
    plan: Mapping[str, Any], grid: Mapping[str, Any], *, methods: Sequence[str] | None = None
) -> list[Experiment]:
    """The trials as experiments: the first trial of every method, then the second ones, and so on.

    Raises:
        DmoleError: methods have different numbers of trials, or a method is not in the grid.
    """
    table = grid["trials"]
    if len({len(row) for row in table.values()}) != 1:
        counts = ", ".join(f"{name} {len(row)}" for name, row in table.items())
        raise DmoleError(f"not every method has the same number of trials: {counts}", "fix [trials] of the grid")
    if unknown := [name for name in methods or () if name not in table]:
        raise DmoleError(f"not in the grid: {', '.join(unknown)}", f"choose of: {', '.join(table)}")
    found = []
    for number in range(len(next(iter(table.values())))):
        for name in methods or table:
            usual = variant_experiment(
                label(name, table[name][number]),
                plan.get("variants", {}).get(name, {"method": name}),
                order=grid["order"],
                seed=grid["seed"],
                group=GROUP,
            )
            found.append(replace(usual, train=settings(table[name][number])))
    return found


def label(name: str, options: Mapping[str, float]) -> str:
    """The label of a trial; contains its options, so that the grid may change without renaming finished trials."""
    return "-".join([name, *settings(options)[1::2]])


def settings(options: Mapping[str, float]) -> tuple[str, ...]:
    """A method's options as arguments of `train-task`."""
    return tuple(word for name, value in options.items() for word in ("--set", f"{name}={value:g}"))


def smaller(config: Mapping[str, Any], grid: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The configuration of the trials: without tuned options and unseen tasks, with the grid's numbers of tasks and samples."""
    table = {key: value for key, value in config.items() if key not in ("method", "unseen")}
    tasks = list(table.get("tasks", DEFAULT_TASKS))[: grid.get("tasks") or None]
    sizes = {split: rows for split, rows in grid.get("sizes", {}).items() if rows}
    return {**table, "unseen": [], "tasks": [_smaller_card(task, sizes, folder) for task in tasks] if sizes else tasks}


def _smaller_card(task: str, sizes: Mapping[str, int], folder: Path) -> str:
    """Write a copy of a task's card with other sizes; paths in it still lead to the same data."""
    card = load_card(task)
    table = read_toml(card.path)
    data = {key: _absolute(value, card.path.parent) for key, value in table.get("data", {}).items()}
    path = folder / "cards" / f"{card.name}.toml"
    write_lines(path, [toml({**table, "data": data, "sizes": {**table.get("sizes", {}), **sizes}})])
    return str(path)


def _absolute(value: Any, folder: Path) -> Any:
    """A path relative to the card's folder as an absolute path; other values unchanged."""
    exists = isinstance(value, str) and bool(value) and (folder / value).exists()
    return str((folder / value).resolve()) if exists else value


def write_tuning(results: Path, plan: Mapping[str, Any], grid: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Write tuning.csv and tuning.md, and print tuning.md, which ends with the tables to copy."""
    columns = ["method", "trial", "options", "task", "quantity", "value"]
    places = {label(name, o): (name, n, o) for name, tried in grid["trials"].items() for n, o in enumerate(tried)}
    values, found = [], {}
    for row in (row for row in rows if row.method in places):
        name, number, options = places[row.method]
        own = {"method": name, "trial": number, "options": " ".join(settings(options)[1::2])}
        values.append({**own, "task": row.task, "quantity": row.quantity, "value": row.value})
        if row.task == MEAN:
            found[name, number, row.quantity] = row.value
    best = {name: _best(found, name, grid) for name in grid["trials"]}
    lines = [f"# Trials on the validation splits, seed {grid['seed']}, order {grid['order']}", ""]
    lines += markdown([_sheet(grid, found, best)])
    lines += [f"Chosen (*): the highest mean {grid['choose'].capitalize()}. For dmole.toml:", "", "```toml"]
    chosen = {name: grid["trials"][name][number] for name, number in best.items() if number is not None}
    methods = {name: options for name, options in chosen.items() if name not in plan.get("variants", {})}
    methods |= {name: chosen[other] for name, other in grid.get("like", {}).items() if other in chosen}
    lines += [toml({"method": methods}).strip(), "```", ""]
    if variants := {name: options for name, options in chosen.items() if name not in methods}:
        lines += ["For [variants] of plan.toml:", "", "```toml"]
        lines += [toml({"variants": {n: {"train": list(settings(o))} for n, o in variants.items()}}).strip(), "```", ""]
    write_csv(results / "tuning.csv", values, columns)
    write_lines(results / "tuning.md", lines)
    print("\n".join(lines))


def _best(found: Mapping[tuple[str, int, str], float], name: str, grid: Mapping[str, Any]) -> int | None:
    """The trial with the highest score, the earlier one of equal ones; None unless all trials have finished."""
    numbers = range(len(grid["trials"][name]))
    if any((name, number, grid["choose"]) not in found for number in numbers):
        return None
    return max(numbers, key=lambda number: (found[name, number, grid["choose"]], -number))


def _sheet(
    grid: Mapping[str, Any], found: Mapping[tuple[str, int, str], float], best: Mapping[str, int | None]
) -> Sheet:
    rows = []
    for name, tried in grid["trials"].items():
        for number, options in enumerate(tried):
            values = [found.get((name, number, quantity)) for quantity in SHOWN]
            star = " *" if best[name] == number else ""
            scores = [MISSING if value is None else points(value) for value in values]
            rows.append([name + star, ", ".join(settings(options)[1::2]), *scores])
    return Sheet("Means over the tasks", ["method", "options", "Last", "BWT"], rows)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the trials; created if needed")
    parser.add_argument("--methods", nargs="+", metavar="ROW", help="rows of the grid [all]")
    parser.add_argument("--grid", type=Path, default=GRID, help="trials [pipelines/compare/grid.toml]")
    parser.add_argument("--plan", type=Path, default=PLAN, help="orders and variants [pipelines/compare/plan.toml]")
    parser.add_argument("--config", type=Path, default=CONFIG, help="tasks and settings [pipelines/compare/dmole.toml]")
    parser.add_argument("--results", type=Path, metavar="DIR", help="output folder of the tables [FOLDER/results]")
    add_options(parser)
    return parser.parse_args()


if __name__ == "__main__":
    main()
