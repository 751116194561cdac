"""`dmole allocate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dmole_cli.artifacts.errors import MissingArtifact
from dmole_cli.artifacts.kinds import D_MOLE
from dmole_cli.cli import console
from dmole_cli.cli.derive import FILES, OUTPUT
from dmole_cli.cli.shared_options import MethodOption, TasksOption
from dmole_cli.cli.workspace import Workspace

SETTINGS = ("allocate", "data_root", "backbone", "dtype", "attention", "quantize", "shared")


def run(
    work: Workspace,
    task: TasksOption = None,
    method: MethodOption = D_MOLE,
    profile: Annotated[
        Path | None,
        typer.Option(help="Profile outside of a run directory; needs --out.", dir_okay=False, rich_help_panel=FILES),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Where to write the allocation of --profile.", dir_okay=False, rich_help_panel=FILES),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(
            "--format", help="`peft`: print the allocation as arguments of PEFT's LoraConfig.", rich_help_panel=OUTPUT
        ),
    ] = None,
) -> None:
    """Allocate for the chosen tasks, or for a profile file."""
    if (profile is None) != (out is None):
        raise typer.BadParameter("--profile and --out need each other")
    if profile is not None and (task or method != D_MOLE):
        raise typer.BadParameter("--profile needs neither --task nor --method: the file is the profile of one task")
    if form not in (None, "peft"):
        raise typer.BadParameter(f"--format {form}: expected peft")
    from dmole_cli.cli.unused import refuse_unused_in_allocation
    from dmole_cli.methods.base import load_method
    from dmole_cli.stages.allocate import allocate_file, allocate_task, as_peft

    refuse_unused_in_allocation(work.typed, work.settings.allocate, load_method(method))
    if profile is not None and out is not None:
        outcomes = [allocate_file(profile, out, work.settings.allocate, force=work.force)]
    else:
        names = work.chosen(task)
        profiled = names if task else [name for name in names if work.run.profile(name).exists()]
        if not profiled:
            raise MissingArtifact(work.run.profile(names[0]), "no task of the stream has a profile")
        outcomes = [allocate_task(name, **work.parts, method=method, force=work.force) for name in profiled]
    if form == "peft":
        console.data({outcome.task: as_peft(outcome.path) for outcome in outcomes})
        return
    work.report(outcomes, following="dmole train-router")
