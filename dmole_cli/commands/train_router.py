"""`dmole train-router`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from dmole_cli.artifacts.kinds import ROUTER
from dmole_cli.cli.derive import HOW, MODEL
from dmole_cli.cli.shared_options import TasksOption
from dmole_cli.cli.workspace import Workspace
from dmole_cli.errors import DmoleError

if TYPE_CHECKING:
    from dmole_cli.routing.balance import Balance

# Features are computed in the data type of the weights, whatever the precision.
SHARED_BY_PROCESSES = True
SETTINGS = ("router", *(name for name in MODEL if name != "precision"), "data_root", "shared", "workers")

BalanceOption = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="Train routers of frequently used experts to reject the inputs of tasks whose experts are used less: strength of "
        "that term (docs/method.md), 0 to remove it. By default, a router keeps the term that it has.",
        rich_help_panel=HOW,
    ),
]


def run(work: Workspace, task: TasksOption = None, balance: BalanceOption = None) -> None:
    """Train the routers of the chosen tasks."""
    names = work.chosen(task)
    from dmole_cli.stages.train_router import train_router

    terms = _terms(work, names, balance) if balance is not None else {}
    outcomes = [
        train_router(name, **work.parts, balance=terms.get(name), force=work.force, track=work.track) for name in names
    ]
    work.report(outcomes, following="dmole train-task")


def _terms(work: Workspace, names: Sequence[str], strength: float) -> dict[str, Balance]:
    """The usage-aware term of each router, from the latest requests."""
    from dmole_cli.artifacts.headers import header_of
    from dmole_cli.processes import world
    from dmole_cli.routing.balance import Balance, balance_for, recorded_balance

    if not math.isfinite(strength):
        raise typer.BadParameter(f"--balance {strength}: expected a number of 0 or more")
    if work.run.shared is not None:
        raise DmoleError(
            f"the routers of {work.run.shared} are shared by several runs, and --balance is for the use of one run",
            f"copy profiles/, features/ and routers/ from there to {work.run.root}, and remove `shared` from its run.toml",
        )
    if not strength:
        return dict.fromkeys(names, Balance())
    uses = world().from_first(lambda: _uses(work))
    return {
        name: balance_for(
            name, uses, strength=strength, before=recorded_balance(header_of(work.run.router(name), ROUTER))
        )
        for name in names
    }


def _uses(work: Workspace) -> dict[str, int]:
    """Task with an expert and a router -> number of the latest requests in which the expert was active."""
    from dmole_cli.artifacts.usage import Usage

    path = work.run.usage()
    counts = Usage(path).counts()
    if not counts.requests:
        raise DmoleError(
            f"{path} has no requests, so the use of the experts is unknown",
            "answer questions by `dmole answer` or `dmole serve`, which record the active experts",
        )
    run = work.run
    tasks = [name for name in work.settings.tasks if run.expert(name).exists() and run.router(name).exists()]
    return {name: counts.experts.get(name, 0) for name in tasks}
