"""`dmole report`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from dmole_cli.cli import console
from dmole_cli.cli.derive import WHAT
from dmole_cli.cli.shared_options import MethodsOption
from dmole_cli.cli.workspace import Workspace

SETTINGS = ("evaluate.split", "shared")
WRITES = False
REPORTS = ("overview", "last", "avg", "bwt", "fwt", "forgetting", "matrix", "knowledge", "cost")


def run(
    work: Workspace,
    name: Annotated[str, typer.Argument(help=f"One of {', '.join(REPORTS)}.", metavar="REPORT")] = REPORTS[0],
    method: MethodsOption = None,
    rescored: Annotated[
        list[str] | None,
        typer.Option(
            help="Metric of `dmole rescore` whose scores replace the original ones; repeatable.", rich_help_panel=WHAT
        ),
    ] = None,
) -> None:
    """Report stored evaluations; missing entries stay missing."""
    require_report(name)
    show_report(work, name, method, rescored=rescored or ())


def require_report(name: str | None) -> None:
    """Refuse an unknown report."""
    if name is not None and name not in REPORTS:
        raise typer.BadParameter(f"unknown report {name}: expected one of {', '.join(REPORTS)}")


def show_report(work: Workspace, name: str, methods: list[str] | None, *, rescored: Sequence[str] = ()) -> None:
    """Print a report of stored evaluations."""
    from dmole_cli.reports import collect, costs, tables

    if name == "cost":
        rows = costs.cost_rows(work.run)
        console.data(rows) if work.json else tables.show(tables.cost_table(rows))
        return
    tasks, split = work.settings.tasks, work.settings.evaluate.split
    reports = collect.collect(work.run, tasks=tasks, methods=methods, split=split, rescored=rescored)
    if work.json:
        console.data(collect.as_json(reports))
        return
    for table in tables.for_report(reports, name):
        tables.show(table)
