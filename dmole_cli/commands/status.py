"""`dmole status`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dmole_cli.cli import console
from dmole_cli.cli.derive import MODEL
from dmole_cli.cli.problems import with_repair
from dmole_cli.cli.workspace import Workspace

if TYPE_CHECKING:
    from dmole_cli.reports.layout import Grid
    from dmole_cli.verification.stream import Link, State

SETTINGS = (*MODEL, "data_root", "shared")
WRITES = False
RUN_ARGUMENT = "place"


def run(
    work: Workspace,
    place: Annotated[Path | None, typer.Argument(help="Run directory, in place of --run.", metavar="RUN")] = None,
) -> None:
    """Show the state of a stream."""
    from dmole_cli.reports import layout
    from dmole_cli.verification.stream import states_of
    from dmole_cli.verification.verify import inspect

    inspection = inspect(**work.parts, track=work.track)
    states, problems, following = states_of(inspection)
    broken = [with_repair(work, problem) for problem in problems]
    following = work.repeating(following) if following else ""
    if work.json:
        console.data({"chains": [state.as_dict() for state in states], "problems": broken, "next": following})
        return
    layout.show(_table(states))
    for problem in broken:
        layout.show_line(problem["problem"])
    if broken:
        console.say(f"next: {broken[0]['repair'].removeprefix('run: ')}", command=True)
    elif following:
        console.say(f"next: {following}", command=True)


def _table(states: list[State]) -> Grid:
    from dmole_cli.reports.layout import Grid

    links = list(states[0].links) if states else []
    grid = Grid("", ["method", "task", *links], keys=2)
    for number, state in enumerate(states):
        first = not number or states[number - 1].method != state.method
        last = number + 1 < len(states) and states[number + 1].method != state.method
        cells = [_cell(name, state.links[name]) for name in links]
        grid.add_row(state.method if first else "", state.task, *cells, end_section=last)
    return grid


def _cell(name: str, link: Link) -> str:
    if not link.state:
        return "–"
    seconds = f"{link.seconds:,.1f} s" if link.seconds is not None else ""
    if link.state in ("stale", "damaged", "missing"):
        return link.state
    if name != "evaluations":
        return "partial" if link.state == "partial" else seconds or "done"
    return " ".join(filter(None, [f"{link.present}/{link.wanted}", seconds]))
