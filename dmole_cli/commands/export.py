"""`dmole export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dmole_cli.artifacts.kinds import D_MOLE
from dmole_cli.cli.derive import OUTPUT
from dmole_cli.cli.shared_options import MethodOption, TasksOption
from dmole_cli.cli.workspace import Workspace
from dmole_cli.errors import DmoleError

SETTINGS = ("data_root", "backbone", "dtype", "attention", "quantize", "device", "shared")
FORMATS = ("peft", "merged", "vllm")


def run(
    work: Workspace,
    folder: Annotated[Path, typer.Argument(help="Output folder: new, empty, or an earlier export.", metavar="FOLDER")],
    task: TasksOption = None,
    method: MethodOption = D_MOLE,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="|".join(FORMATS),
            help="`peft`: a LoRA adapter; `merged`: the whole model with the expert in its weights; `vllm`: an adapter for each "
            "expert and each pair that was active together, and a script that chooses.",
            rich_help_panel=OUTPUT,
        ),
    ] = "peft",
) -> None:
    """Export one task's expert, or with --format vllm all of them."""
    if form not in FORMATS:
        raise DmoleError(f"unknown --format '{form}'", f"choose one of: {', '.join(FORMATS)}")
    names = work.chosen(task, in_stream=True) if task else None
    if form == "vllm":
        from dmole_cli.stages.export_vllm import export_vllm

        work.report([export_vllm(names, folder, **work.parts, method=method, force=work.force)])
        return
    if names is None or len(names) != 1:
        raise typer.BadParameter(f"--format {form} exports one task: pass one --task")
    from dmole_cli.stages.export import export

    outcome = export(
        names[0], folder, form=form, data=work.data, model=work.model, run=work.run, method=method, force=work.force
    )
    work.report([outcome])
