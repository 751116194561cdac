"""The trials of the tuning: the searches that the grid describes, and the experiments and scores of their trials."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from _bracket import Axis, Scores, Search, Trial, trial_of
from _files import read_toml, toml, write_lines
from _options import arguments, from_arguments
from _plan import Experiment, Record, depends_on_order, rows_of_plan, variant_experiment, variant_of
from _results import MEAN, Row

from dmole_cli.data.card import load_card
from dmole_cli.errors import DmoleError
from dmole_cli.methods.base import COMMON_OPTIONS, load_method
from dmole_cli.settings.model import DEFAULT_TASKS

GROUP = "tuning"
GRID = Path(__file__).with_name("grid.toml")
KEYS = ("start", "factors", "low", "high")
# What `train-task` says when a loss, a gradient or an expert is no longer finite.
DIVERGED = "nothing was written"
Place = tuple[str, str]  # row and order


def searches(
    plan: Mapping[str, Any],
    grid: Mapping[str, Any],
    *,
    rows: Sequence[str] | None = None,
    orders: Sequence[str] | None = None,
) -> dict[Place, Search]:
    """The searches of the chosen rows and orders; a row that does not depend on the order has one, in the first order.

    Rows of the grid whose methods do not exist are left out.

    Raises:
        DmoleError: rows have different numbers of trials; a row, an order, a key or an option does not exist; or a variant trains
            with arguments that its trials would not have.
    """
    table = grid["trials"]
    if len({len(row["start"]) for row in table.values()}) != 1:
        counts = ", ".join(f"{name} {len(row['start'])}" for name, row in table.items())
        raise DmoleError(
            f"not every method starts with the same number of trials: {counts}", "fix [trials] of the grid"
        )
    known = rows_of_plan(plan)
    available = [name for name in table if name in known]
    for what, names, existing in (("method", rows, available), ("order", orders, list(plan["orders"]))):
        if unknown := [name for name in names or () if name not in existing]:
            raise DmoleError(f"no such {what} in the grid: {', '.join(unknown)}", f"choose of: {', '.join(existing)}")
    found = {}
    for order in [name for name in grid["orders"] if not orders or name in orders]:
        for name in [name for name in available if not rows or name in rows]:
            variant = variant_of(plan, name)
            if depends_on_order(variant["method"]) or order == grid["orders"][0]:
                _check_variant(name, variant, table[name]["factors"])
                found[name, order] = _search(name, variant["method"], table[name], most=grid["most"])
    return found


def _check_variant(name: str, variant: Mapping[str, Any], factors: Mapping[str, float]) -> None:
    """Reject arguments of a variant's training that are not options of its trials, which take the place of all of them."""
    words = list(map(str, variant.get("train", ())))
    if lost := [word for word in words if word != "--set" and word.partition("=")[0] not in factors]:
        raise DmoleError(
            f"the trials of {name} would train without {' '.join(lost)}, which the plan gives to its training",
            f"add the option to `factors` and `start` of [trials.{name}], or take {name} out of the grid",
        )


def _search(name: str, method: str, row: Mapping[str, Any], *, most: int) -> Search:
    options = {**COMMON_OPTIONS, **load_method(method).options}
    factors = row["factors"]
    bounds = {bound: row.get(bound, {}) for bound in ("low", "high")}
    wrong = [key for key in row if key not in KEYS]
    wrong += [key for key in factors if key not in options]
    wrong += [key for bound in bounds.values() for key in bound if key not in factors]
    if wrong or any(set(trial) != set(factors) for trial in row["start"]):
        message = f"[trials.{name}] of the grid: {', '.join(wrong) or 'a trial does not have the options of `factors`'}"
        raise DmoleError(message, f"it has {', '.join(KEYS)}; every trial has a value for every option of `factors`")
    axes = {
        key: Axis(options[key], factor, bounds["low"].get(key, 0.0), bounds["high"].get(key, math.inf))
        for key, factor in factors.items()
    }
    return Search(tuple(trial_of(trial, tuple(axes)) for trial in row["start"]), axes, most)


def experiment_of(plan: Mapping[str, Any], grid: Mapping[str, Any], place: Place, trial: Trial) -> Experiment:
    """A trial as an experiment; its label contains the options, so that the grid may change without renaming finished trials."""
    name, order = place
    words = arguments(dict(trial))
    label = "-".join([name, *words[1::2]])
    usual = variant_experiment(label, variant_of(plan, name), order=order, seed=grid["seed"], group=GROUP)
    return replace(usual, train=words)


def trial_in(experiment: Experiment) -> tuple[Place, Trial]:
    """The row, the order and the options of a trial's experiment."""
    name = experiment.label.removesuffix("-" + "-".join(experiment.train[1::2]))
    return (name, experiment.order), tuple(from_arguments(experiment.train).items())


def scores_of(folder: Path, record: Record, rows: Sequence[Row], *, quantity: str) -> dict[Place, dict[Trial, float]]:
    """The mean score of every finished trial; minus infinity for a trial whose training has diverged."""
    means = {(row.method, row.order): row.value for row in rows if row.task == MEAN and row.quantity == quantity}
    found: dict[Place, dict[Trial, float]] = {}
    for experiment in (experiment for experiment in record.experiments if experiment.group == GROUP):
        place, trial = trial_in(experiment)
        score = means.get((experiment.label, experiment.order))
        if score is None and has_diverged(folder, experiment):
            score = -math.inf
        if score is not None:
            found.setdefault(place, {})[trial] = score
    return found


def has_diverged(folder: Path, experiment: Experiment) -> bool:
    """Whether the training of a trial has ended because a value was not finite."""
    return not (folder / experiment.result).is_file() and bool(_logs_of_divergence(folder, experiment))


def _logs_of_divergence(folder: Path, experiment: Experiment) -> list[Path]:
    logs = (folder / experiment.folder / "logs" / "experts").rglob("*.log")
    return [path for path in logs if DIVERGED in " ".join(path.read_text(encoding="utf-8", errors="replace").split())]


def forget_divergence(folder: Path, record: Record, places: Container[Place]) -> None:
    """Delete the logs by which trials of these searches count as diverged, so that they run again."""
    for experiment in record.experiments:
        if experiment.group == GROUP and trial_in(experiment)[0] in places:
            for path in _logs_of_divergence(folder, experiment):
                path.unlink()


def experiments_for(
    plan: Mapping[str, Any], grid: Mapping[str, Any], found: Mapping[Place, Search], scores: Mapping[Place, Scores]
) -> tuple[list[Experiment], list[Experiment]]:
    """The finished trials of the searches, but for diverged ones, and the next ones: those of all rows in turn."""
    old, new = [], []
    for place, search in found.items():
        own = search.own(scores.get(place, {}))
        old += [experiment_of(plan, grid, place, trial) for trial, score in own.items() if score > -math.inf]
        new += [
            (number, experiment_of(plan, grid, place, trial))
            for number, trial in enumerate(search.next_trials(scores.get(place, {})))
        ]
    return old, [experiment for _, experiment in sorted(new, key=lambda pair: pair[0])]


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
