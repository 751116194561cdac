"""Options that several subcommands have and that are no settings."""

from __future__ import annotations

from typing import Annotated

import typer

from dmole_cli.cli.completion import of_choices, of_shelf, of_tasks
from dmole_cli.cli.derive import WHAT

TasksOption = Annotated[
    list[str] | None,
    typer.Option(
        "--task",
        "-t",
        help="Task; repeatable. By default all of the stream.",
        rich_help_panel=WHAT,
        autocompletion=of_tasks,
    ),
]
TaskOption = Annotated[
    str, typer.Option("--task", "-t", help="Task of the stream.", rich_help_panel=WHAT, autocompletion=of_tasks)
]
METHODS = of_shelf("methods")
MethodOption = Annotated[
    str, typer.Option("--method", help="Method, a file of methods/.", rich_help_panel=WHAT, autocompletion=METHODS)
]
MethodsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--method", help="Method, a file of methods/; repeatable.", rich_help_panel=WHAT, autocompletion=METHODS
    ),
]
StagesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--stage",
        help="Number of trained tasks, from 0 (pretrained backbone); `diagonal` for each task after its own training; or `all`. "
        "Repeatable. By default all that exist.",
        rich_help_panel=WHAT,
        autocompletion=of_choices(("all", "diagonal")),
    ),
]


def chosen_stages(typed: list[str] | None, tasks: int) -> list[int] | None:
    """The numbers of trained tasks that were typed; None for the default.

    Args:
        typed: of `--stage`.
        tasks: number of tasks of the stream.
    """
    if not typed:
        return None
    if "all" in typed:
        return list(range(tasks + 1))
    for text in typed:
        if text != "diagonal" and (not text.isdecimal() or int(text) > tasks):
            raise typer.BadParameter(f"--stage {text}: expected a number from 0 to {tasks}, diagonal, or all")
    return [int(text) for text in typed if text != "diagonal"]
