"""`dmole profile`."""

from __future__ import annotations

from dmole_cli.cli.derive import MODEL
from dmole_cli.cli.shared_options import TasksOption
from dmole_cli.cli.workspace import Workspace

SHARED_BY_PROCESSES = True
SETTINGS = ("profile", "train.max_length", *MODEL, "data_root", "shared", "workers")


def run(work: Workspace, task: TasksOption = None) -> None:
    """Profile the chosen tasks."""
    names = work.chosen(task)
    from dmole_cli.stages.profile import profile

    outcomes = [profile(name, **work.parts, force=work.force, track=work.track) for name in names]
    work.report(outcomes, following=f"dmole allocate --budget {work.settings.allocate.budget}")
