"""`dmole allocate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dmole_cli.commands import console
from dmole_cli.commands.options import (
    DEFAULT_RUN,
    AttentionOption,
    BackboneOption,
    ConfigOption,
    DataRootOption,
    DtypeOption,
    ForceOption,
    JsonOption,
    PrecisionOption,
    QuantizeOption,
    RunOption,
    SharedOption,
    TaskOption,
    chosen_tasks,
    open_session,
)
from dmole_cli.errors import DmoleError

HELP = "Place a task's experts under a parameter budget: `allocations/<task>.json`."


def _fraction(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise typer.BadParameter(f"{text!r} is not a share; write 25% or 0.25")
    return value


def allocate(
    task: TaskOption = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="New parameters of a task: 2% of the backbone's, sites:50% of the sites, params:64k. [default: 2%]"
        ),
    ] = None,
    rank: Annotated[int | None, typer.Option(min=1, help="Rank of an expert. [default: 8]")] = None,
    alpha: Annotated[
        float | None, typer.Option(help="Numerator of an expert's scale, alpha / rank. [default: 16]")
    ] = None,
    vision_floor: Annotated[
        str | None, typer.Option(help="Least share of the budget for vision. [default: 25%]")
    ] = None,
    score: Annotated[
        str | None, typer.Option(help="Column of the profile to rank by: score or norm_mean. [default: score]")
    ] = None,
    curriculum: Annotated[
        bool | None,
        typer.Option("--curriculum/--no-curriculum", help="Split the budget by difficulty, or by capacity."),
    ] = None,
    only: Annotated[str | None, typer.Option(help="Only this tower may get experts: vision or language.")] = None,
    method: Annotated[
        str, typer.Option(help="Method whose experts are placed: d-mole, or an ablation of it (v1, v2, v3).")
    ] = "d-mole",
    profile: Annotated[
        Path | None, typer.Option(help="A bare profile file, without a run directory (with --out).")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where to write the placement of --profile.")] = None,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan",
            help="State what budgets buy and what memory profiling and training take; loads no weights, writes nothing. "
            "Memory is planned for the first task unless --task names some.",
        ),
    ] = False,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Samples of a batch, for --plan.")] = None,
    precision: PrecisionOption = None,
    data_root: DataRootOption = None,
    format: Annotated[
        str | None,
        typer.Option(help="peft: print each task's placement as arguments of PEFT's LoraConfig, JSON by task."),
    ] = None,
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
    """Stage 2."""
    if (profile is None) != (out is None):
        raise typer.BadParameter("--profile and --out go together")
    if format not in (None, "peft"):
        raise typer.BadParameter(f"--format {format}: there is peft")
    if only not in (None, "vision", "language"):
        raise typer.BadParameter(f"--only {only}: choose vision or language")
    section = {
        "budget": budget,
        "rank": rank,
        "alpha": alpha,
        "vision_floor": _fraction(vision_floor),
        "score": score,
        "curriculum": curriculum,
        "modalities": (only,) if only else None,
    }
    session = open_session(
        run=run,
        shared=shared,
        config=config,
        backbone=backbone,
        dtype=dtype,
        attention=attention,
        quantize=quantize,
        precision=precision,
        data_root=data_root,
        allocate=section,
        profile={"batch_size": batch_size},
        train={"batch_size": batch_size},
    )
    if plan:
        from dmole_cli.stages.plan import plan as state

        names = chosen_tasks(session, task)
        planned = state(session, names if task else names[:1])
        console.data(planned) if json else _show(planned)
        return
    from dmole_cli.stages.allocate import allocate_file, allocate_task

    if profile is not None and out is not None:
        outcomes = [allocate_file(profile, out, session.config.allocate, force=force)]
    else:
        names = chosen_tasks(session, task)
        profiled = names if task else [name for name in names if session.run.profile(name).exists()]
        if not profiled:
            raise DmoleError(f"no task of the stream has a profile in {run}", "make them with: dmole profile")
        outcomes = [allocate_task(session, name, method=method, force=force) for name in profiled]
    if format == "peft":
        from dmole_cli.stages.allocate import as_peft

        console.data({outcome.task: as_peft(outcome.path) for outcome in outcomes})
        return
    console.report(outcomes, as_json=json, following="dmole train-router")


def _show(planned: dict[str, Any]) -> None:
    from rich.table import Table

    from dmole_cli.reports.tables import show

    sites = ", ".join(f"{count} {name}" for name, count in planned["sites"].items())
    print(f"{planned['model']}: {planned['parameters']:,} parameters; sites ({planned['pattern']}): {sites}")
    budgets = Table("budget", title=f"what a task may add, at rank {planned['rank']}", title_justify="left")
    for name in ("sites", "parameters", "expert MB"):
        budgets.add_column(name, justify="right")
    for row in planned["budgets"]:
        bought = (str(row["sites"]), f"{row['parameters']:,}", f"{row['bytes'] / 1e6:,.1f}") if "sites" in row else ()
        budgets.add_row(row["budget"], *(bought or ("", "", "cannot be")))
    show(budgets)
    for row in planned["budgets"]:
        if "refused" in row:
            print(row["refused"])
    memory = Table("task", "work", title="memory at the peak, MB", title_justify="left")
    for name in ("batch", "tokens", "checkpointing", "tensors", "weights", "libraries", "process"):
        memory.add_column(name, justify="right")
    for row in planned["memory"]:
        sizes = (f"{row[name] / 1e6:,.0f}" for name in ("tensors", "weights", "libraries", "process"))
        again = "yes" if row["checkpointing"] else "no"
        memory.add_row(row["task"], row["work"], str(row["batch_size"]), str(row["tokens"]), again, *sizes)
    show(memory)
    for assumption in planned["assumes"]:
        print(f"assumes: {assumption}")
