"""`dmole train-router`."""

from __future__ import annotations

from dmole_cli.cli.derive import MODEL
from dmole_cli.cli.shared_options import TasksOption
from dmole_cli.cli.workspace import Workspace

# Features are computed in the data type of the weights, whatever the precision.
SHARED_BY_PROCESSES = True
SETTINGS = ("router", *(name for name in MODEL if name != "precision"), "data_root", "shared", "workers")


def run(work: Workspace, task: TasksOption = None) -> None:
    """Train the routers of the chosen tasks."""
    names = work.chosen(task)
    from dmole_cli.stages.train_router import train_router

    outcomes = [train_router(name, **work.parts, force=work.force, track=work.track) for name in names]
    work.report(outcomes, following="dmole train-task")
