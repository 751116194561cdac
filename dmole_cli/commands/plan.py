"""`dmole plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dmole_cli.artifacts.kinds import D_MOLE
from dmole_cli.cli import console
from dmole_cli.cli.derive import HOW, MODEL
from dmole_cli.cli.shared_options import TasksOption
from dmole_cli.cli.workspace import Workspace

# Without a profile all sites have the same score, and the scale of an expert takes no memory.
SETTINGS = (
    *(f"allocate.{name}" for name in ("budget", "rank", "max_rank", "vision_floor", "curriculum", "modalities")),
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
    measure: Annotated[
        bool,
        typer.Option(
            "--measure", help="Load the backbone and measure the time of every stage for a minute.", rich_help_panel=HOW
        ),
    ] = False,
    earlier: Annotated[
        Path | None,
        typer.Option(
            "--from", help="Run directory whose figures of time are used, instead of --run.", rich_help_panel=HOW
        ),
    ] = None,
    processes: Annotated[
        int, typer.Option(min=1, help="Processes that share the work of a command.", rich_help_panel=HOW)
    ] = 1,
) -> None:
    """Plan for the chosen tasks; by default time and bytes for the whole stream, and memory for its first task."""
    from dmole_cli.artifacts.run import Run
    from dmole_cli.cli.unused import refuse_unused_in_allocation
    from dmole_cli.errors import DmoleError
    from dmole_cli.methods.base import load_method
    from dmole_cli.planning.durations import seconds_of_process

    refuse_unused_in_allocation(work.typed, work.settings.allocate, load_method(D_MOLE))
    if measure and earlier is not None:
        raise typer.BadParameter("--measure and --from: choose one source of the times")
    if earlier is not None and not earlier.is_dir():
        raise DmoleError(
            f"there is no run directory {earlier}", "pass --from a run whose stages have run, or --measure"
        )
    names = work.chosen(task)
    begun = seconds_of_process()
    from dmole_cli.reports.plans import show_plan
    from dmole_cli.stages.plan import Scope, plan

    parts = work.parts
    if batch_size is not None:
        settings = work.settings
        sections = {name: getattr(settings, name).updated(batch_size=batch_size) for name in ("profile", "train")}
        parts["settings"] = settings.updated(**sections)
    planned = plan(
        names if task else names[:1],
        **parts,
        of=Scope(
            stream=names if task else (*names, *work.settings.unseen),
            processes=processes,
            measure=measure,
            earlier=Run(earlier, work.run.shared) if earlier else None,
            begun=begun,
        ),
        track=work.track,
    )
    console.data(planned) if work.json else show_plan(planned)
