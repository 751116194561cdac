"""`dmole experts remove`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from dmole_cli.cli import console
from dmole_cli.cli.completion import of_tasks
from dmole_cli.cli.derive import HOW
from dmole_cli.cli.workspace import Workspace

SETTINGS = ("shared",)
WRITES = False


def run(
    work: Workspace,
    task: Annotated[str, typer.Argument(help="Task of the stream.", metavar="TASK", autocompletion=of_tasks)],
    *,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.", rich_help_panel=HOW)] = False,
) -> None:
    """Take a task out of the stream."""
    from dmole_cli.stages.remove_task import remove_task

    place = work.run.removed(task).root
    if not yes:
        if not sys.stdin.isatty():
            raise typer.BadParameter("this asks before it moves files; add --yes to answer it here")
        question = f"Move the files of {task}, and the evaluations of models that have learned it, to {place}?"
        typer.confirm(question, abort=True, err=True)
    change = remove_task(task, settings=work.settings, run=work.run)
    if work.json:
        console.data(change.as_dict())
        return
    console.say(f"removed {task}, task {change.position} of the stream; moved {change.files} files to {place}")
    console.say(f"the stream is now: {', '.join(change.tasks)}")
    if task in work.configured_tasks:
        console.say(
            f"delete {task} from `tasks` of the configuration, too; until then, commands leave it out with a warning"
        )
    console.say(f"next: {work.repeating(f'dmole experts load {task}')}  (brings it back)", command=True)
