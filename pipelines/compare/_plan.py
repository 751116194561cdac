"""What is compared, as data: a cell is one row of the table in one order of the tasks with one seed.

The plan is a TOML file (plan.toml says what each key means); the methods are whatever lies in `dmole_cli/methods`.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dmole_cli import catalog
from dmole_cli.artifacts.files import write_json
from dmole_cli.data.loading import task_name
from dmole_cli.errors import DmoleError

FOLDER = Path(__file__).parent
PLAN, CONFIG = FOLDER / "plan.toml", FOLDER / "dmole.toml"
MAIN = "main"
STEPS = ("router", "allocate", "train", "evaluate")


@dataclass(frozen=True)
class Cell:
    """One row in one order with one seed.

    Attributes:
        label: name of the row; the method's own, or a variant's.
        method: a file of `methods/`.
        order: of the tasks, by its name in the plan.
        seed: of the experts and of their training.
        group: the table that it belongs to, `main` or a study.
        router, allocate, train, evaluate: what the commands of these stages are given beside the usual.
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

    @property
    def trained_apart(self) -> bool:
        """Whether it trains otherwise than its method usually does, and so needs a run directory of its own."""
        return bool(self.router or self.allocate or self.train)

    @property
    def folder(self) -> str:
        """Run directory, relative to that of the comparison."""
        usual = f"{self.order}/seed-{self.seed}"
        return f"{usual}/variants/{self.label}" if self.trained_apart else usual

    @property
    def shared(self) -> str:
        """Directory of profiles, features and routers, relative to that of the comparison."""
        return f"shared-{self.label}" if self.router else "shared"

    def __str__(self) -> str:
        return f"{self.label}, order {self.order}, seed {self.seed}"


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        DmoleError: it is not there, or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DmoleError(f"cannot read {path}: {error}", "give the path of a TOML file") from error


def rows_of_plan(plan: Mapping[str, Any]) -> list[str]:
    """Every row of the main table: methods and variants, those that the plan does not name in the place of `*`."""
    there = [*catalog.names("methods"), *plan.get("variants", {})]
    named = [name for name in plan["methods"] if name == "*" or name in there]
    others = [name for name in there if name not in named]
    return [row for name in named for row in (others if name == "*" else [name])]


def main_cells(
    plan: Mapping[str, Any],
    *,
    rows: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    orders: Sequence[str] | None = None,
) -> list[Cell]:
    """The cells of the main table in the order of work: all rows of the first order seed by seed, then the other orders.

    Raises:
        DmoleError: a row or an order does not exist.
    """
    every = rows_of_plan(plan)
    _known("method", rows or (), every)
    _known("order", orders or (), list(plan["orders"]))
    first = next(iter(plan["orders"]))
    cells = []
    for order in plan["orders"]:
        takes_part = every if order == first else plan.get("second", {}).get(order, [])
        for seed in plan["seeds"] if seeds is None else seeds:
            cells += [_cell(plan, row, order=order, seed=seed) for row in every if row in takes_part]
    return [c for c in cells if (not rows or c.label in rows) and (not orders or c.order in orders)]


def _cell(plan: Mapping[str, Any], row: str, *, order: str, seed: int) -> Cell:
    variant = plan.get("variants", {}).get(row, {"method": row})
    return variant_cell(row, variant, order=order, seed=seed)


def study_cells(
    plan: Mapping[str, Any], *, studies: Sequence[str] | None = None, seeds: Sequence[int] | None = None
) -> list[Cell]:
    """The cells of the studies in the first order, study by study; with the first seed of the plan unless others are given.

    Raises:
        DmoleError: a study does not exist, or a variant has a key that means nothing.
    """
    _known("study", studies or (), list(plan.get("studies", {})))
    first = next(iter(plan["orders"]))
    return [
        variant_cell(variant["label"], variant, order=first, seed=seed, group=name)
        for name in (plan.get("studies", {}) if studies is None else studies)
        for seed in (plan["seeds"][:1] if seeds is None else seeds)
        for variant in plan["studies"][name]["variants"]
    ]


def variant_cell(label: str, variant: Mapping[str, Any], *, order: str, seed: int, group: str = MAIN) -> Cell:
    """A cell from a table of the plan.

    Raises:
        DmoleError: the table has a key that means nothing.
    """
    _known("key of a variant", variant, ["method", "label", *STEPS])
    given = {step: tuple(map(str, variant.get(step, ()))) for step in STEPS}
    return Cell(label, variant.get("method", "d-mole"), order, seed, group, **given)


def _known(what: str, names: Iterable[str], there: Sequence[str]) -> None:
    if wrong := [name for name in names if name not in there]:
        raise DmoleError(f"no such {what}: {', '.join(wrong)}", f"choose of: {', '.join(there)}")


def order_of(plan: Mapping[str, Any], name: str, tasks: Sequence[str]) -> list[str]:
    """The tasks in an order of the plan.

    Raises:
        DmoleError: the order holds other tasks than the configuration.
    """
    asked = plan["orders"][name]
    found = {"configured": list(tasks), "reversed": list(tasks)[::-1]}.get(asked if isinstance(asked, str) else "")
    found = list(asked) if found is None and not isinstance(asked, str) else found
    if found is None or sorted(found) != sorted(tasks):
        hint = f'write "configured", "reversed", or a list of {", ".join(tasks)}'
        raise DmoleError(f"order {name} of the plan does not hold the tasks of the configuration", hint)
    return found


@dataclass
class Record:
    """`plan.json` of a comparison's folder: every cell that was ever asked for, and the orders; the tables read it.

    Attributes:
        orders: name -> tasks.
        cells: in the order of the plan.
        split: what is evaluated.
    """

    orders: dict[str, list[str]] = field(default_factory=dict)
    cells: list[Cell] = field(default_factory=list)
    split: str = "test"

    def add(self, cells: Sequence[Cell], orders: Mapping[str, Sequence[str]], *, rows: Sequence[str] = ()) -> None:
        """Take in what is asked for now; rows of the main table stay in the order of the plan."""
        asked = {(c.group, c.order, c.seed, c.label): c for c in cells}
        before = [c for c in self.cells if (c.group, c.order, c.seed, c.label) not in asked]
        groups = list(dict.fromkeys(c.group for c in (*self.cells, *cells)))
        named = list(dict.fromkeys((*self.orders, *orders, *(c.order for c in (*self.cells, *cells)))))

        # A study keeps the order of its variants, the first of which the others are compared with. One that its plan has
        # gained since the study was last asked for stands where the plan has it now.
        def place(cell: Cell) -> tuple[int, ...]:
            row = rows.index(cell.label) if cell.group == MAIN and cell.label in rows else len(rows)
            return groups.index(cell.group), row, named.index(cell.order), cell.seed

        self.cells = sorted((*asked.values(), *before), key=place)
        self.orders |= {name: [task_name(task) for task in tasks] for name, tasks in orders.items()}

    def write(self, folder: Path) -> None:
        """Write it."""
        write_json(folder / "plan.json", asdict(self))


def read_record(folder: Path) -> Record:
    """Read `plan.json`, an empty one where nothing was asked for yet.

    Raises:
        DmoleError: the file is damaged.
    """
    path = folder / "plan.json"
    if not path.exists():
        return Record()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        cells = [Cell(**{k: tuple(v) if isinstance(v, list) else v for k, v in c.items()}) for c in content["cells"]]
        return Record(content["orders"], cells, content["split"])
    except (ValueError, TypeError, KeyError) as error:
        raise DmoleError(f"{path} cannot be read: {error!r}", "delete it and start run.py again") from error
