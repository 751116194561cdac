"""`dmole plan`."""

from __future__ import annotations

from typing import Annotated

import typer

from dmole_cli.artifacts.kinds import D_MOLE
from dmole_cli.cli import console
from dmole_cli.cli.derive import HOW, MODEL
from dmole_cli.cli.shared_options import TasksOption
from dmole_cli.cli.workspace import Workspace

# Without a profile all sites have the same score, and the scale of an expert takes no memory.
SETTINGS = (
    *(f"allocate.{name}" for name in ("budget", "rank", "vision_floor", "curriculum", "modalities")),
    "profile.sites",
    "train.max_length",
    *MODEL,
    "data_root",
    "shared",
)
WRITES = False


def run(
    work: Workspace,
    task: TasksOption = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Samples per batch of profiling and training.", rich_help_panel=HOW),
    ] = None,
) -> None:
    """Plan for the chosen tasks, by default for the first one of the stream."""
    from dmole_cli.cli.unused import refuse_unused_in_allocation
    from dmole_cli.methods.base import load_method

    refuse_unused_in_allocation(work.typed, work.settings.allocate, load_method(D_MOLE))
    names = work.chosen(task) if task else work.chosen(task)[:1]
    from dmole_cli.reports.listings import show_plan
    from dmole_cli.stages.plan import plan

    parts = work.parts
    if batch_size is not None:
        settings = work.settings
        sections = {name: getattr(settings, name).updated(batch_size=batch_size) for name in ("profile", "train")}
        parts["settings"] = settings.updated(**sections)
    planned = plan(names, **parts)
    console.data(planned) if work.json else show_plan(planned)
