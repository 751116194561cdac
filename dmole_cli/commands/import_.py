"""`dmole import`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dmole_cli.artifacts.kinds import D_MOLE
from dmole_cli.cli.shared_options import MethodOption, TaskOption
from dmole_cli.cli.workspace import Workspace

SETTINGS = ("backbone", "dtype", "attention", "quantize", "shared")


def run(
    work: Workspace,
    folder: Annotated[
        Path,
        typer.Argument(help="Folder with adapter_config.json and adapter_model.safetensors.", metavar="FOLDER"),
    ],
    task: TaskOption,
    method: MethodOption = D_MOLE,
) -> None:
    """Import an adapter as one task's expert."""
    [name] = work.chosen([task], in_stream=True)
    from dmole_cli.stages.import_adapter import import_adapter

    outcome = import_adapter(name, folder, method=method, force=work.force, **work.parts_without_data)
    work.report([outcome], following=f"dmole train-router --task {task}")
