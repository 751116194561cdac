"""`dmole train-task`."""

from __future__ import annotations

from typing import Annotated

import typer

from dmole_cli.commands import console
from dmole_cli.commands.options import (
    DEFAULT_RUN,
    BackboneOption,
    ConfigOption,
    DataRootOption,
    ForceOption,
    JsonOption,
    RunOption,
    SeedOption,
    SharedOption,
    TaskOption,
    chosen_tasks,
    open_session,
)

HELP = "Train one task's expert, and nothing else: experts/<task>.safetensors."


def train_task(
    task: TaskOption = None,
    method: Annotated[str, typer.Option(help="A file of methods/: d-mole, seq-ft, finetune.")] = "d-mole",
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Passes over the training split. [default: the card's]")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Samples of a step. [default: the card's]")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak rate. [default: the card's]")] = None,
    dropout: Annotated[
        float | None, typer.Option(help="On the experts' input while training, 0..1. [default: 0]")
    ] = None,
    transfer: Annotated[
        bool | None,
        typer.Option("--transfer/--no-transfer", help="Let the nearest earlier expert join, frozen (d-mole)."),
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="Parameters of a task for methods without an allocation. [default: 2%]")
    ] = None,
    run: RunOption = DEFAULT_RUN,
    config: ConfigOption = None,
    shared: SharedOption = None,
    backbone: BackboneOption = None,
    data_root: DataRootOption = None,
    seed: SeedOption = None,
    json: JsonOption = False,
    force: ForceOption = False,
) -> None:
    """Stage 4."""
    section = {
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "dropout": dropout,
        "transfer": transfer,
    }
    session = open_session(
        run=run,
        shared=shared,
        config=config,
        seed=seed,
        backbone=backbone,
        data_root=data_root,
        train=section,
        allocate={"budget": budget},
    )
    names = chosen_tasks(session, task, in_stream=True)
    from dmole_cli.stages.train_task import train_task as stage

    track = console.tracker(not json)
    outcomes = [stage(session, name, method=method, force=force, track=track) for name in names]
    extra = "" if method == "d-mole" else f" --method {method}"
    console.report(outcomes, as_json=json, following=f"dmole evaluate --stage all{extra}")
