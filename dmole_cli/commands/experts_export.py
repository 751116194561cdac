"""`dmole experts export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dmole_cli.artifacts.kinds import D_MOLE
from dmole_cli.cli.completion import of_tasks
from dmole_cli.cli.derive import OUTPUT, WHAT
from dmole_cli.cli.shared_options import MethodOption
from dmole_cli.cli.workspace import Workspace

SETTINGS = ("data_root", "backbone", "dtype", "attention", "quantize", "shared")
BUNDLE = "Folder to write: new, empty, or an earlier bundle with --force."


def run(
    work: Workspace,
    tasks: Annotated[
        list[str] | None, typer.Argument(help="Tasks of the stream.", metavar="TASK", autocompletion=of_tasks)
    ] = None,
    *,
    bundle: Annotated[Path, typer.Option(help=BUNDLE, metavar="DIR", rich_help_panel=OUTPUT)],
    every: Annotated[bool, typer.Option("--all", help="All trained tasks.", rich_help_panel=WHAT)] = False,
    method: MethodOption = D_MOLE,
) -> None:
    """Write experts for another run directory."""
    if bool(tasks) == every:
        raise typer.BadParameter("pass the tasks whose experts to export, or --all")
    from dmole_cli.methods._trained import trained_tasks
    from dmole_cli.methods.base import load_method
    from dmole_cli.stages.export_bundle import export_bundle

    chosen = work.chosen(tasks, in_stream=True)
    if every:
        chosen = chosen[: max(1, trained_tasks(load_method(method), work.settings, work.run))]
    outcome = export_bundle(chosen, bundle, method=method, force=work.force, **work.parts)
    work.report([outcome])
