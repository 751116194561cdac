"""The options of the methods, chosen on validation: a file beside the configuration of a stream, written by tune.py.

    [method.joint]                 # for every order
    learning_rate = 0.008

    [orders.B.method.seq-ft]       # for one order; takes the place of [method.seq-ft] there
    learning_rate = 0.00038

The rows are those of the main table. A method's options are written into the configuration of each order, from which `dmole`
reads them; those of a variant become arguments of its training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from _files import read_toml, toml, write_lines
from _plan import CONFIG, FOLDER, Experiment

from dmole_cli.errors import DmoleError

Options = Mapping[str, float]
HEADING = "# Options of the methods, chosen on validation by pipelines/compare/tune.py; run.py reads them."


def options_beside(config: Path) -> Path:
    """The file of the options that were chosen for the stream of a configuration: `dmole-options.toml` for `dmole.toml`."""
    return config.with_name(f"{config.stem}-options.toml")


def options_for(config: Path) -> Path | None:
    """The file whose options a stream uses; None if there is none.

    A stream of pipelines/compare that was not tuned itself uses the options of the first stream there.
    """
    own, first = options_beside(config), options_beside(CONFIG)
    if own.is_file():
        return own
    return first if config.resolve().parent == FOLDER and first.is_file() else None


def read_options(path: Path | None) -> dict[str, Any]:
    """Read a file of options; empty for None.

    Raises:
        DmoleError: the file is unreadable, or has an unknown key.
    """
    table = read_toml(path) if path else {}
    tables = {"": table, **{f"orders.{name}.": own for name, own in table.get("orders", {}).items()}}
    allowed = {"": {"method", "orders"}}
    if wrong := [
        f"{where}{key}" for where, own in tables.items() for key in own if key not in allowed.get(where, {"method"})
    ]:
        raise DmoleError(
            f"{path} has unknown keys: {', '.join(wrong)}", "it has [method.ROW] and [orders.NAME.method.ROW]"
        )
    return table


def options_in(table: Mapping[str, Any], order: str) -> dict[str, Options]:
    """Row -> its options in one order."""
    return {**table.get("method", {}), **table.get("orders", {}).get(order, {}).get("method", {})}


def updated(table: Mapping[str, Any], chosen: Mapping[tuple[str, str | None], Options]) -> dict[str, Any]:
    """A table of options with new ones, sorted by order and row.

    Args:
        table: that of the file.
        chosen: (row, order) -> options; the order is None for a row whose training does not depend on it.
    """
    general = dict(table.get("method", {}))
    orders = {name: dict(own.get("method", {})) for name, own in table.get("orders", {}).items()}
    for (row, order), options in chosen.items():
        if order is None:
            general[row] = dict(options)
            for own in orders.values():
                own.pop(row, None)
        else:
            orders.setdefault(order, {})[row] = dict(options)
    found: dict[str, Any] = {"method": dict(sorted(general.items()))} if general else {}
    by_order = {name: {"method": dict(sorted(own.items()))} for name, own in sorted(orders.items()) if own}
    return found | ({"orders": by_order} if by_order else {})


def write_options(path: Path, table: Mapping[str, Any]) -> None:
    """Write a table of options."""
    write_lines(path, [HEADING, "", toml(table).strip()])


def arguments(options: Options) -> tuple[str, ...]:
    """Options of a method as arguments of `train-task`."""
    return tuple(word for name, value in options.items() for word in ("--set", f"{name}={value:g}"))


def from_arguments(words: Sequence[str]) -> dict[str, float]:
    """The options in arguments of `train-task`."""
    typed = [value.partition("=") for word, value in pairwise(words) if word == "--set"]
    return {name: float(value) for name, _, value in typed}


def with_options(experiment: Experiment, options: Options) -> Experiment:
    """An experiment of a variant whose training has these options; they take the place of the plan's."""
    kept, words = [], iter(experiment.train)
    for word in words:
        pair = (word, next(words)) if word == "--set" else (word,)
        if word != "--set" or pair[1].partition("=")[0] not in options:
            kept += pair
    return replace(experiment, train=(*kept, *arguments(options)))
