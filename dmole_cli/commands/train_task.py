"""`dmole train-task`."""

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
    MergeOption,
    PrecisionOption,
    QuantizeOption,
    RunOption,
    SeedOption,
    SharedOption,
    TaskOption,
    chosen_tasks,
    method_options,
    open_session,
    with_merge,
)
from dmole_cli.errors import DmoleError

HELP = "Train one task's expert, and nothing else: `experts/<task>.safetensors`."


def train_task(
    task: TaskOption = None,
    method: Annotated[
        str, typer.Option(help="A file of methods/: d-mole, seq-ft, ewc-lora, … An unknown name lists them.")
    ] = "d-mole",
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Passes over the training split. [default: the card's]")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Samples of a step. [default: the card's]")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak rate. [default: the card's]")] = None,
    dropout: Annotated[
        float | None, typer.Option(help="On the experts' input while training, 0..1. [default: 0]")
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(
            min=0, help="Tokens of a sample; longer ones lose the front of their question. [default: 0, no limit]"
        ),
    ] = None,
    transfer: Annotated[
        bool | None,
        typer.Option("--transfer/--no-transfer", help="Let the nearest earlier expert join, frozen (d-mole)."),
    ] = None,
    checkpointing: Annotated[
        bool | None,
        typer.Option(
            "--checkpointing/--no-checkpointing",
            help="Recompute activations: a fraction of the memory, more time, the same expert. [default: no]",
        ),
    ] = None,
    merge: MergeOption = False,
    orthogonal: Annotated[
        float | None,
        typer.Option(help="Weight of O-LoRA's penalty between new and earlier experts (d-mole). [default: 0]"),
    ] = None,
    fisher_samples: Annotated[
        int | None,
        typer.Option(min=1, help="Samples that the Fisher information is measured on (ewc-lora). [default: 256]"),
    ] = None,
    replay_ratio: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of every earlier task's data (replay). [default: 0.1]")
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="An option of the method, NAME=NUMBER, like weight=100; repeatable. A wrong name lists those it has.",
        ),
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="Parameters of a task for methods without an allocation. [default: 2%]")
    ] = None,
    run: RunOption = DEFAULT_RUN,
    config: ConfigOption = None,
    shared: SharedOption = None,
    backbone: BackboneOption = None,
    dtype: DtypeOption = None,
    attention: AttentionOption = None,
    quantize: QuantizeOption = None,
    device: DeviceOption = None,
    precision: PrecisionOption = None,
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
        "max_length": max_length,
        "transfer": transfer,
        "checkpointing": checkpointing,
    }
    method = with_merge(method, merge)
    options = method_options(setting, orthogonal=orthogonal, fisher_samples=fisher_samples, replay_ratio=replay_ratio)
    session = open_session(
        run=run,
        shared=shared,
        config=config,
        seed=seed,
        backbone=backbone,
        dtype=dtype,
        attention=attention,
        quantize=quantize,
        device=device,
        precision=precision,
        data_root=data_root,
        train=section,
        allocate={"budget": budget},
        method={method: options},
    )
    from dmole_cli.methods.base import load_method
    from dmole_cli.stages.train_task import train_task as stage

    names = (
        chosen_tasks(session, task, in_stream=True) if task else load_method(method).trained_tasks(session.config.tasks)
    )
    if not names:
        raise DmoleError(f"method {method} trains nothing", f"evaluate it: dmole evaluate --method {method}")

    track = console.tracker(not json)
    outcomes = [stage(session, name, method=method, force=force, track=track) for name in names]
    extra = "" if method == "d-mole" else f" --method {method}"
    console.report(outcomes, as_json=json, following=f"dmole evaluate --stage all{extra}")
