"""`dmole export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dmole_cli.artifacts.kinds import D_MOLE
from dmole_cli.cli.derive import OUTPUT
from dmole_cli.cli.shared_options import MethodOption, TaskOption
from dmole_cli.cli.workspace import Workspace

SETTINGS = ("data_root", "backbone", "dtype", "attention", "quantize", "device", "shared")


def run(
    work: Workspace,
    folder: Annotated[Path, typer.Argument(help="Output folder: new, empty, or an earlier export.", metavar="FOLDER")],
    task: TaskOption,
    method: MethodOption = D_MOLE,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="peft|merged",
            help="`peft`: a LoRA adapter; `merged`: the whole model with the expert in its weights.",
            rich_help_panel=OUTPUT,
        ),
    ] = "peft",
) -> None:
    """Export one task's expert."""
    [name] = work.chosen([task], in_stream=True)
    from dmole_cli.stages.export import export

    outcome = export(
        name, folder, form=form, data=work.data, model=work.model, run=work.run, method=method, force=work.force
    )
    work.report([outcome])
