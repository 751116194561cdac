"""`dmole profile`."""

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
    PrecisionOption,
    QuantizeOption,
    RunOption,
    SharedOption,
    StageSeedOption,
    TaskOption,
    chosen_tasks,
    open_session,
)

HELP = "Measure how strongly a task pulls at each layer: `profiles/<task>.parquet`."


def profile(
    task: TaskOption = None,
    portion: Annotated[
        float | None, typer.Option(help="Share of the training split to measure, 0..1. [default: 0.01]")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Samples of a batch. [default: 8]")] = None,
    sites: Annotated[
        str | None,
        typer.Option(help="attention, linear, or a regular expression on module paths. [default: attention]"),
    ] = None,
    checkpointing: Annotated[
        bool | None,
        typer.Option(
            "--checkpointing/--no-checkpointing",
            help="Recompute activations: a fraction of the memory, more time, the same profile. [default: no]",
        ),
    ] = None,
    per_sample: Annotated[
        bool | None,
        typer.Option(
            "--per-sample/--no-per-sample",
            help="Add the columns sample_norm_mean and sample_norm_std: norms of single samples' gradients. [default: no]",
        ),
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
    seed: StageSeedOption = None,
    json: JsonOption = False,
    force: ForceOption = False,
) -> None:
    """Stage 1."""
    section = {
        "seed": seed,
        "portion": portion,
        "batch_size": batch_size,
        "sites": sites,
        "checkpointing": checkpointing,
        "per_sample": per_sample,
    }
    session = open_session(
        run=run,
        shared=shared,
        config=config,
        backbone=backbone,
        dtype=dtype,
        attention=attention,
        quantize=quantize,
        device=device,
        precision=precision,
        data_root=data_root,
        profile=section,
    )
    names = chosen_tasks(session, task)
    from dmole_cli.stages.profile import profile as stage

    track = console.tracker(not json)
    outcomes = [stage(session, name, force=force, track=track) for name in names]
    console.report(outcomes, as_json=json, following="dmole allocate --budget 2%")
