"""`dmole update`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Annotated

import typer

from dmole_cli.cli import console
from dmole_cli.cli.derive import COMPUTING, HOW, OUTPUT
from dmole_cli.cli.shared_options import MethodsOption
from dmole_cli.cli.workspace import Workspace
from dmole_cli.errors import DmoleError
from dmole_cli.processes import world

if TYPE_CHECKING:
    from dmole_cli.artifacts.outcome import Outcome
    from dmole_cli.planning.steps import Step, Update
    from dmole_cli.reports.layout import Grid

SHARED_BY_PROCESSES = True
SETTINGS = ("allocate.budget", "train.micro_batch", "seed", *COMPUTING)


def run(
    work: Workspace,
    method: MethodsOption = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Do not ask before the first step.", rich_help_panel=HOW)
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the steps, and run none.", rich_help_panel=OUTPUT)
    ] = False,
) -> None:
    """Bring the whole stream up to date."""
    asks = not (yes or dry_run)
    if asks and world().first and not (sys.stdin and sys.stdin.isatty()):
        raise typer.BadParameter("there is no terminal to ask in: pass --yes, or --dry-run to see the steps")
    update = world().from_first(lambda: _planned(work, method))
    if not work.json:
        _show(update)
    if dry_run:
        if work.json:
            console.data(update.as_dict())
        return
    if update.steps and asks and not world().from_first(_confirmed):
        console.say("update: nothing was done")
        raise typer.Exit(1)
    outcomes = _run(work, update)
    if work.json:
        console.data({**update.as_dict(), "outcomes": [outcome.as_dict() for outcome in outcomes]})
    if update.blocked:
        count = len(update.blocked)
        raise DmoleError(
            f"the stream is not up to date: {count} {'file was' if count == 1 else 'files were'} left out",
            next((one.hint for one in update.blocked if one.hint), ""),
        )
    if update.steps:
        console.say("update: the stream is up to date")
        console.say(f"next: {work.repeating('dmole report bwt')}", command=True)


def _planned(work: Workspace, methods: list[str] | None) -> Update:
    """The steps, as the first process finds them."""
    from dmole_cli.methods.base import load_method
    from dmole_cli.planning.nodes import methods_of
    from dmole_cli.planning.steps import update_of
    from dmole_cli.verification.verify import inspect

    for name in methods or ():
        load_method(name)
    inspection = inspect(**work.parts, cached=True, track=work.track)
    return update_of(inspection, methods or methods_of(inspection), force=work.force)


def _run(work: Workspace, update: Update) -> list[Outcome]:
    """Run the steps and report each as its own command does."""
    from dmole_cli.cli.steps import run_step
    from dmole_cli.commands.allocate import show_outcomes

    done: list[Outcome] = []
    for number, step in enumerate(update.steps, start=1):
        if not work.json:
            console.say(f"step {number} of {len(update.steps)}: {_name(step)} {step.call.task}{_about(step)}")
        outcomes = run_step(work, step)
        done += outcomes
        if work.json:
            work.record(outcomes)
        elif step.call.stage == "allocate":
            show_outcomes(work, outcomes)
        else:
            work.report(outcomes)
    return done


def _confirmed() -> bool:
    return typer.confirm("Run these steps?", err=True)


def _name(step: Step) -> str:
    """The stage, with its method and metric where it has some."""
    call = step.call
    return " ".join(filter(None, [call.stage, call.metric, call.label]))


def _about(step: Step) -> str:
    from dmole_cli.reports.plans import duration

    return f", about {duration(step.seconds)}" if step.seconds else ""


def _show(update: Update) -> None:
    """Print the steps, what is left out, and the time."""
    from dmole_cli.reports import layout

    if update.up_to_date:
        console.say("update: the stream is up to date, nothing to do")
    if update.steps:
        layout.show(_table(update))
    for line in _left_out(update):
        layout.show_line(line)
    if update.steps:
        layout.show_line(_time(update))


def _left_out(update: Update) -> Iterator[str]:
    """What no step makes, and what to do; files with the same reason share a line, as do all that depend on other ones."""
    own = [one for one in update.left_out if one.hint]
    for (why, hint), group in groupby(own, key=lambda one: (one.why, one.hint)):
        first, *rest = [one.path for one in group]
        yield f"left out: {first}{f' and {len(rest)} more' if rest else ''}: {why}"
        yield f"  -> {hint}"
    if later := len(update.left_out) - len(own):
        yield f"left out, because they are made from these: {'1 file' if later == 1 else f'{later} files'}"


def _time(update: Update) -> str:
    """The time of all steps, in words."""
    from dmole_cli.reports.plans import duration

    unknown = sum(step.seconds is None for step in update.certain)
    if unknown == sum(step.seconds != 0.0 for step in update.certain) > 0:
        return "time: unknown, this run has no figures of these stages yet; measure it: dmole plan --measure"
    text = f"about {duration(update.seconds)} in all, and loading the backbone"
    if unknown:
        steps = "1 step" if unknown == 1 else f"{unknown} steps"
        text += f"; and {steps} of unknown time, of which this run has no figures yet: dmole plan --measure"
    if later := sum(step.seconds or 0.0 for step in update.steps if step.state == "may follow"):
        text += f"; up to {duration(later)} more if what is made again comes out different"
    return text


def _table(update: Update) -> Grid:
    """A row for consecutive steps of a stage that have the same reason."""
    from dmole_cli.reports.layout import Grid
    from dmole_cli.reports.plans import duration

    grid = Grid("", ["stage", "tasks", "about", "why"], keys=2, sentences=frozenset({1, 3}))
    for (name, why), group in groupby(update.steps, key=lambda step: (_name(step), step.why)):
        steps = list(group)
        known = [step.seconds for step in steps if step.seconds is not None]
        about = duration(sum(known)) if len(known) == len(steps) else "unknown"
        grid.add_row(name, ", ".join(step.call.task for step in steps), about, why)
    return grid
