"""What is compared, as data. An experiment is one row of the table: a method or variant, an order of the tasks and a seed.

The plan is a TOML file (plan.toml explains its keys); the methods are the files of `dmole_cli/methods`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dmole_cli import catalog
from dmole_cli.artifacts.files import write_json
from dmole_cli.artifacts.run import D_MOLE
from dmole_cli.data.card import task_name
from dmole_cli.errors import DmoleError
from dmole_cli.methods.base import load_method

FOLDER = Path(__file__).resolve().parent
PLAN, CONFIG = FOLDER / "plan.toml", FOLDER / "dmole.toml"
MAIN = "main"
STAGES = ("router", "allocate", "train", "evaluate")


@dataclass(frozen=True)
class Experiment:
    """A method or variant in one order with one seed.

    Attributes:
        label: name of the table row, that of the method or of the variant.
        method: name of a file of `methods/`.
        order: name of an order of the plan.
        seed: `--seed` of the training.
        group: the table it belongs to, `main` or a study.
        router, allocate, train, evaluate: additional arguments of these stages' commands.
        result: the last of its evaluations that is written, in the folder of the comparison: it exists if all of them do.
    """

    label: str
    method: str
    order: str
    seed: int
    group: str = MAIN
    router: tuple[str, ...] = ()
    allocate: tuple[str, ...] = ()
    train: tuple[str, ...] = ()
    evaluate: tuple[str, ...] = ()
    result: str = ""

    @property
    def trained_apart(self) -> bool:
        """Whether its training differs from that of its method, so that it needs its own run directory."""
        return bool(self.router or self.allocate or self.train)

    @property
    def folder(self) -> str:
        """Run directory, relative to the folder of the comparison."""
        usual = f"{self.order}/seed-{self.seed}"
        return f"{usual}/variants/{self.label}" if self.trained_apart else usual

    @property
    def shared(self) -> str:
        """Directory of profiles, features and routers, relative to the folder of the comparison."""
        return f"shared-{self.label}" if self.router else "shared"

    def __str__(self) -> str:
        return f"{self.label}, order {self.order}, seed {self.seed}"


def rows_of_plan(plan: Mapping[str, Any]) -> list[str]:
    """All rows of the main table, methods and variants; `*` stands for those that the plan does not name."""
    available = [*catalog.names("methods"), *plan.get("variants", {})]
    named = [name for name in plan["methods"] if name == "*" or name in available]
    others = [name for name in available if name not in named]
    return [row for name in named for row in (others if name == "*" else [name])]


def variant_of(plan: Mapping[str, Any], row: str) -> Mapping[str, Any]:
    """The plan's table of a row of the main table, with its method; for a row that is no variant, this is all."""
    variant = plan.get("variants", {}).get(row, {"method": row})
    return {"method": D_MOLE, **variant}


def depends_on_order(method: str) -> bool:
    """Whether a method's training or evaluation depends on the order of the tasks.

    It does not where each task is trained alone, nor where all tasks are trained together in a random order.
    """
    try:
        return load_method(method).protocol not in ("per-task", "joint")
    except Exception:  # a new method's file may raise anything; it is reported when its jobs are made
        return True


def main_experiments(
    plan: Mapping[str, Any],
    *,
    rows: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    orders: Sequence[str] | None = None,
) -> list[Experiment]:
    """The experiments of the main table: all rows of the first order seed by seed, then the other orders.

    In the other orders, `*` stands for every row that depends on the order.

    Raises:
        DmoleError: a row or an order does not exist.
    """
    every = rows_of_plan(plan)
    _check_names("method", rows or (), every)
    _check_names("order", orders or (), list(plan["orders"]))
    first = next(iter(plan["orders"]))
    found = []
    for order in plan["orders"]:
        included = every if order == first else plan.get("second", {}).get(order, [])
        if "*" in included:
            included = [row for row in every if depends_on_order(variant_of(plan, row)["method"])]
        for seed in plan["seeds"] if seeds is None else seeds:
            found += [
                variant_experiment(row, variant_of(plan, row), order=order, seed=seed)
                for row in every
                if row in included
            ]
    return [e for e in found if (not rows or e.label in rows) and (not orders or e.order in orders)]


def study_experiments(
    plan: Mapping[str, Any], *, studies: Sequence[str] | None = None, seeds: Sequence[int] | None = None
) -> list[Experiment]:
    """The experiments of the studies in the first order, study by study; by default with all seeds of the plan.

    Raises:
        DmoleError: a study does not exist, or a variant has an unknown key.
    """
    _check_names("study", studies or (), list(plan.get("studies", {})))
    first = next(iter(plan["orders"]))
    return [
        variant_experiment(variant["label"], variant, order=first, seed=seed, group=name)
        for name in (plan.get("studies", {}) if studies is None else studies)
        for seed in (plan["seeds"] if seeds is None else seeds)
        for variant in plan["studies"][name]["variants"]
    ]


def variant_experiment(
    label: str, variant: Mapping[str, Any], *, order: str, seed: int, group: str = MAIN
) -> Experiment:
    """The experiment that a table of the plan describes.

    Raises:
        DmoleError: the table has an unknown key.
    """
    _check_names("key of a variant", variant, ["method", "label", *STAGES])
    arguments = {stage: tuple(map(str, variant.get(stage, ()))) for stage in STAGES}
    return Experiment(label, variant.get("method", D_MOLE), order, seed, group, **arguments)


def _check_names(what: str, names: Iterable[str], available: Sequence[str]) -> None:
    if unknown := [name for name in names if name not in available]:
        raise DmoleError(f"no such {what}: {', '.join(unknown)}", f"choose of: {', '.join(available)}")


def order_of(plan: Mapping[str, Any], name: str, tasks: Sequence[str]) -> list[str]:
    """The tasks in an order of the plan.

    Raises:
        DmoleError: the order does not contain exactly the tasks of the configuration.
    """
    order = plan["orders"][name]
    found = {"configured": list(tasks), "reversed": list(tasks)[::-1]}.get(order if isinstance(order, str) else "")
    found = list(order) if found is None and not isinstance(order, str) else found
    if found is None or sorted(found) != sorted(tasks):
        hint = f'write "configured", "reversed", or a list of {", ".join(tasks)}'
        raise DmoleError(f"order {name} of the plan does not hold the tasks of the configuration", hint)
    return found


@dataclass
class Record:
    """`plan.json` of a comparison's folder: every experiment that was requested so far, from which the tables are made.

    Attributes:
        orders: name -> tasks.
        experiments: in the order of the plan.
        split: the split that is evaluated.
        config: the configuration as it is given to run.py; empty for that of the first stream.
    """

    orders: dict[str, list[str]] = field(default_factory=dict)
    experiments: list[Experiment] = field(default_factory=list)
    split: str = "test"
    config: str = ""

    def add(
        self, experiments: Sequence[Experiment], orders: Mapping[str, Sequence[str]], *, rows: Sequence[str] = ()
    ) -> None:
        """Add requested experiments.

        Rows of the main table are sorted as in the plan (`rows`). A study keeps the order of its variants, the first of which
        is the baseline; a variant that was added to the plan later is inserted where the plan has it.
        """
        requested = {(e.group, e.order, e.seed, e.label): e for e in experiments}
        before = [e for e in self.experiments if (e.group, e.order, e.seed, e.label) not in requested]
        groups = list(dict.fromkeys(e.group for e in (*self.experiments, *experiments)))
        named = list(dict.fromkeys((*self.orders, *orders, *(e.order for e in (*self.experiments, *experiments)))))

        def position(experiment: Experiment) -> tuple[int, ...]:
            in_plan = experiment.group == MAIN and experiment.label in rows
            row = rows.index(experiment.label) if in_plan else len(rows)
            return groups.index(experiment.group), row, named.index(experiment.order), experiment.seed

        self.experiments = sorted((*requested.values(), *before), key=position)
        self.orders |= {name: [task_name(task) for task in tasks] for name, tasks in orders.items()}

    def write(self, folder: Path) -> None:
        """Write `plan.json`; its key for the experiments is `cells`, as in the folders of earlier versions."""
        cells = [asdict(experiment) for experiment in self.experiments]
        config = {"config": self.config} if self.config else {}
        write_json(folder / "plan.json", {"orders": self.orders, "cells": cells, "split": self.split, **config})


def read_record(folder: Path) -> Record:
    """Read `plan.json`; an empty record if the file does not exist.

    Raises:
        DmoleError: the file is damaged.
    """
    path = folder / "plan.json"
    if not path.exists():
        return Record()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        tables = [{k: tuple(v) if isinstance(v, list) else v for k, v in c.items()} for c in content["cells"]]
        return Record(
            content["orders"], [Experiment(**table) for table in tables], content["split"], content.get("config", "")
        )
    except (ValueError, TypeError, KeyError) as error:
        raise DmoleError(f"{path} cannot be read: {error!r}", "delete it and start run.py again") from error
