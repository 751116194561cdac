"""`dmole import`."""

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

HELP = "Take a PEFT LoRA adapter as a task's expert: `experts/<task>.safetensors`."


def import_(
    folder: Annotated[Path, typer.Argument(help="Holds adapter_config.json and adapter_model.safetensors.")],
    task: OneTaskOption,
    method: Annotated[str, typer.Option(help="Whose expert it becomes: d-mole, finetune, …")] = "d-mole",
    run: RunOption = DEFAULT_RUN,
    config: ConfigOption = None,
    shared: SharedOption = None,
    backbone: BackboneOption = None,
    dtype: DtypeOption = None,
    attention: AttentionOption = None,
    quantize: QuantizeOption = None,
    json: JsonOption = False,
    force: ForceOption = False,
) -> None:
    """In the place of stage 4."""
    session = open_session(
        run=run, shared=shared, config=config, backbone=backbone, dtype=dtype, attention=attention, quantize=quantize
    )
    [name] = chosen_tasks(session, [task], in_stream=True)
    from dmole_cli.stages.import_adapter import import_adapter

    outcome = import_adapter(session, name, folder, method=method, force=force)
    console.report([outcome], as_json=json, following=f"dmole train-router --task {task}")
