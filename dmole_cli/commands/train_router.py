"""`dmole train-router`."""

from __future__ import annotations

from typing import Annotated

import typer

from dmole_cli.commands import console
from dmole_cli.commands.options import (
    DEFAULT_RUN,
    AttentionOption,
    BackboneOption,
    ConfigOption,
    DataRootOption,
    DeviceOption,
    DtypeOption,
    ForceOption,
    JsonOption,
    QuantizeOption,
    RunOption,
    SharedOption,
    StageSeedOption,
    TaskOption,
    chosen_tasks,
    open_session,
)

HELP = "Train the autoencoder that recognises a task's inputs: `routers/<task>.safetensors`."


def train_router(
    task: TaskOption = None,
    decoder: Annotated[
        str | None, typer.Option(help="Last layer of the autoencoder: sigmoid or linear. [default: sigmoid]")
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(help="The decoder's untrained bias: mean (of the features) or random. [default: mean]"),
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs at most. [default: 1000]")] = None,
    threshold_scale: Annotated[
        float | None, typer.Option(help="Factor on the 0.99-quantile of the held-out losses. [default: 1.0]")
    ] = None,
    run: RunOption = DEFAULT_RUN,
    config: ConfigOption = None,
    shared: SharedOption = None,
    backbone: BackboneOption = None,
    dtype: DtypeOption = None,
    attention: AttentionOption = None,
    quantize: QuantizeOption = None,
    device: DeviceOption = None,
    data_root: DataRootOption = None,
    seed: StageSeedOption = None,
    json: JsonOption = False,
    force: ForceOption = False,
) -> None:
    """Stage 3."""
    section = {"seed": seed, "decoder": decoder, "start": start, "epochs": epochs, "threshold_scale": threshold_scale}
    session = open_session(
        run=run,
        shared=shared,
        config=config,
        backbone=backbone,
        dtype=dtype,
        attention=attention,
        quantize=quantize,
        device=device,
        data_root=data_root,
        router=section,
    )
    names = chosen_tasks(session, task)
    from dmole_cli.stages.train_router import train_router as stage

    track = console.tracker(not json)
    outcomes = [stage(session, name, force=force, track=track) for name in names]
    console.report(outcomes, as_json=json, following="dmole train-task")
