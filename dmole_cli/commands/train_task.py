"""`dmole train-task`."""

from __future__ import annotations

from typing import Annotated

import typer

from dmole_cli.artifacts.kinds import D_MOLE
from dmole_cli.cli.derive import COMPUTING, HOW
from dmole_cli.cli.shared_options import MethodOption, TasksOption
from dmole_cli.cli.workspace import Workspace
from dmole_cli.errors import DmoleError

SHARED_BY_PROCESSES = True
SETTINGS = ("train", "allocate.budget", "seed", *COMPUTING)


def run(
    work: Workspace,
    task: TasksOption = None,
    method: MethodOption = D_MOLE,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Option of the method, NAME=NUMBER, like weight=100; repeatable.", rich_help_panel=HOW
        ),
    ] = None,
) -> None:
    """Train the experts of the chosen tasks."""
    from dmole_cli.cli.unused import refuse_unused_in_training
    from dmole_cli.methods.base import load_method
    from dmole_cli.stages.train_task import train_task

    rules = load_method(method)
    names = work.chosen(task, in_stream=True) if task else rules.trained_tasks(work.settings.tasks)
    if not names:
        raise DmoleError(f"method {method} trains nothing", f"evaluate it: dmole evaluate --method {method}")
    options = [text.partition("=")[0].strip().replace("-", "_") for text in setting or []]
    refuse_unused_in_training(work, rules, names, options)
    outcomes = [train_task(name, **work.parts, method=method, force=work.force, track=work.track) for name in names]
    work.report(outcomes, following="dmole evaluate --stage all" + ("" if method == D_MOLE else f" --method {method}"))
