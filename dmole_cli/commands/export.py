"""`dmole export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dmole_cli.commands import console
from dmole_cli.commands.options import (
    DEFAULT_RUN,
    AttentionOption,
    BackboneOption,
    ConfigOption,
    DeviceOption,
    DtypeOption,
    ForceOption,
    JsonOption,
    OneTaskOption,
    QuantizeOption,
    RunOption,
    SharedOption,
    chosen_tasks,
    open_session,
)

HELP = "Write a task's expert for use without dmole: as a PEFT LoRA adapter, or merged into a copy of the backbone."


def export(
    folder: Annotated[
        Path, typer.Argument(help="Where to; a folder that is empty, not there yet, or an earlier export.")
    ],
    task: OneTaskOption,
    format: Annotated[
        str, typer.Option(help="peft: adapter_config.json and adapter_model.safetensors; merged: the whole model.")
    ] = "peft",
    method: Annotated[str, typer.Option(help="Whose expert.")] = "d-mole",
    run: RunOption = DEFAULT_RUN,
    config: ConfigOption = None,
    shared: SharedOption = None,
    backbone: BackboneOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    attention: AttentionOption = None,
    quantize: QuantizeOption = None,
    json: JsonOption = False,
    force: ForceOption = False,
) -> None:
    """Beside the five stages."""
    session = open_session(
        run=run,
        shared=shared,
        config=config,
        backbone=backbone,
        dtype=dtype,
        attention=attention,
        quantize=quantize,
        device=device,
    )
    [name] = chosen_tasks(session, [task], in_stream=True)
    from dmole_cli.stages.export import export as stage

    outcome = stage(session, name, folder, form=format, method=method, force=force)
    console.report([outcome], as_json=json, following="")
