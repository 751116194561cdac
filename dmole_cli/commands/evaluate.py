"""`dmole evaluate`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

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
    SharedOption,
    open_session,
    with_merge,
)

if TYPE_CHECKING:
    from dmole_cli.config import Config
    from dmole_cli.session import Session

HELP = "Score every task after every stage, and report Last, AVG, BWT and more."
REPORTS = ("overview", "last", "avg", "bwt", "fwt", "forgetting", "matrix", "knowledge", "cost")


def evaluate(
    stage: Annotated[
        list[str] | None,
        typer.Option(
            "--stage",
            help="Stage to evaluate, 0 (pretrained) to T; 'diagonal' (each task after its own training); or 'all'; "
            "repeatable. [default: those trained so far]",
        ),
    ] = None,
    task: Annotated[
        list[str] | None, typer.Option("--task", "-t", help="Task to evaluate on; repeatable. [default: all]")
    ] = None,
    method: Annotated[list[str] | None, typer.Option("--method", help="Method; repeatable. [default: d-mole]")] = None,
    report: Annotated[
        str | None,
        typer.Option(
            help=f"One of {', '.join(REPORTS)}. Alone it only reads what was evaluated; missing cells stay missing."
        ),
    ] = None,
    likelihood: Annotated[
        bool,
        typer.Option("--likelihood", help="Score the right answers, too: is it knowledge that is lost, or format?"),
    ] = False,
    merge: MergeOption = False,
    routing: Annotated[
        list[str] | None,
        typer.Option(help="top-2, top-1, batch-vote, oracle or always-all; repeatable. [default: top-2]"),
    ] = None,
    threshold_scale: Annotated[
        list[float] | None,
        typer.Option(help="Factor on every router's threshold; repeat it for several. [default: 1.0]"),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="test, or validation (kept apart; make choices there). [default: test]")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Samples generated at once. [default: 64]")] = None,
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
    json: JsonOption = False,
    force: ForceOption = False,
) -> None:
    """Stage 5, and the reports."""
    if report is not None and report not in REPORTS:
        raise typer.BadParameter(f"--report {report}: choose one of {', '.join(REPORTS)}")
    methods = [with_merge(name, merge) for name in method or (["seq-ft"] if merge else [])]
    section = {"split": split, "batch_size": batch_size}
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
        evaluate=section,
    )
    if report is None or stage or task or likelihood:
        outcomes = []
        # The same checkpoint under each routing: what a routing does not change is not generated again.
        for changed in _routings(session.config, routing, threshold_scale):
            session.config = changed
            outcomes += _evaluate(session, stage, task, methods or ["d-mole"], json, likelihood=likelihood, force=force)
        shown = json and report is None
        following = "" if report else f"dmole evaluate --report {'knowledge' if likelihood else 'bwt'}"
        console.report(outcomes, as_json=shown, following=following)
    if report is not None:
        _report(session, report, methods or None, as_json=json)


def _routings(config: Config, modes: list[str] | None, scales: list[float] | None) -> list[Config]:
    """The configuration under each mode and threshold scale; all of them are checked before the first one is used."""
    from dmole_cli.config import override, require_possible

    changed = [
        replace(config, evaluate=override(config.evaluate, routing=mode, threshold_scale=scale))
        for mode in (modes or (None,))
        for scale in (scales or (None,))
    ]
    for one in changed:
        require_possible(one)
    return changed


def _evaluate(
    session: Session,
    stage: list[str] | None,
    task: list[str] | None,
    methods: list[str],
    json: bool,
    *,
    likelihood: bool,
    force: bool,
) -> list:
    every = list(range(len(session.config.tasks) + 1))
    named = [name for name in stage or () if name != "diagonal"]
    stages = None if not stage else every if "all" in named else [_number(session, s) for s in named]
    names = [session.admit(name) for name in task or ()]
    for name in names:
        if name not in session.config.unseen:
            session.config.position(name)
    from dmole_cli.stages.evaluate import evaluate as run_stage

    track = console.tracker(not json)
    outcomes = []
    for method in methods:
        outcomes += run_stage(
            session,
            method=method,
            stages=stages,
            tasks=names or None,
            diagonal="diagonal" in (stage or ()),
            likelihood=likelihood,
            force=force,
            track=track,
        )
    return outcomes


def _number(session: Session, text: str) -> int:
    last = len(session.config.tasks)
    if not text.isdecimal() or int(text) > last:
        raise typer.BadParameter(f"--stage {text}: a number from 0 (pretrained) to {last}, diagonal, or all")
    return int(text)


def _report(session: Session, name: str, methods: list[str] | None, *, as_json: bool) -> None:
    from dmole_cli.reports import summary, tables

    if name == "cost":
        rows = summary.cost_rows(session.run)
        console.data(rows) if as_json else tables.show(tables.cost_table(rows))
        return
    reports = summary.collect(
        session.run, tasks=session.config.tasks, methods=methods, split=session.config.evaluate.split
    )
    if as_json:
        console.data(summary.as_json(reports))
        return
    for table in tables.for_report(reports, name):
        tables.show(table)
