"""`dmole evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
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
    from dmole_cli.artifacts.outcome import Outcome
    from dmole_cli.session import Session
    from dmole_cli.settings.model import Config

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
    rescore: Annotated[
        list[str] | None,
        typer.Option(
            help="Score what was evaluated again by this metric, without the model; with --report alone, show it. Repeatable."
        ),
    ] = None,
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
    if rescore and (likelihood or routing or threshold_scale):
        raise typer.BadParameter(
            "--rescore reads stored answers: leave out --likelihood, and name a routing's evaluations like "
            "--method d-mole@oracle"
        )
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
        if rescore:
            outcomes += _rescore(session, rescore, stage, task, methods or None, force=force)
        # The same checkpoint under each routing: what a routing does not change is not generated again.
        for changed in () if rescore else _routings(session.config, routing, threshold_scale):
            session.config = changed
            outcomes += _evaluate(session, stage, task, methods or ["d-mole"], json, likelihood=likelihood, force=force)
        shown = json and report is None
        again = "".join(f" --rescore {metric}" for metric in rescore or ())
        following = "" if report else f"dmole evaluate{again} --report {'knowledge' if likelihood else 'bwt'}"
        console.report(outcomes, as_json=shown, following=following)
    if report is not None:
        _report(session, report, methods or None, rescore or (), as_json=json)


def _routings(config: Config, modes: list[str] | None, scales: list[float] | None) -> list[Config]:
    """The configuration under each mode and threshold scale; all of them are checked before the first one is used."""
    from dmole_cli.settings.model import override, require_possible

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
            stages=_stages(session, stage),
            tasks=names or None,
            diagonal="diagonal" in (stage or ()),
            likelihood=likelihood,
            force=force,
            track=track,
        )
    return outcomes


def _rescore(
    session: Session,
    metrics: list[str],
    stage: list[str] | None,
    task: list[str] | None,
    methods: list[str] | None,
    *,
    force: bool,
) -> list[Outcome]:
    from dmole_cli.data.loading import task_name
    from dmole_cli.stages.rescore import rescore as run_stage

    outcomes = []
    for metric in metrics:
        outcomes += run_stage(
            session,
            metric,
            methods=methods,
            stages=_stages(session, stage),
            # Not the card: what was evaluated can be scored again without the task's data, too.
            tasks=[task_name(name) for name in task] if task else None,
            diagonal="diagonal" in (stage or ()),
            force=force,
        )
    return outcomes


def _stages(session: Session, typed: list[str] | None) -> list[int] | None:
    """The stages that were typed; None for what the work takes by itself."""
    if not typed:
        return None
    if "all" in typed:
        return list(range(len(session.config.tasks) + 1))
    return [_number(session, text) for text in typed if text != "diagonal"]


def _number(session: Session, text: str) -> int:
    last = len(session.config.tasks)
    if not text.isdecimal() or int(text) > last:
        raise typer.BadParameter(f"--stage {text}: a number from 0 (pretrained) to {last}, diagonal, or all")
    return int(text)


def _report(session: Session, name: str, methods: list[str] | None, rescored: Sequence[str], *, as_json: bool) -> None:
    from dmole_cli.reports import collect as summary
    from dmole_cli.reports import costs, tables

    if name == "cost":
        rows = costs.cost_rows(session.run)
        console.data(rows) if as_json else tables.show(tables.cost_table(rows))
        return
    reports = summary.collect(
        session.run,
        tasks=session.config.tasks,
        methods=methods,
        split=session.config.evaluate.split,
        rescored=rescored,
    )
    if as_json:
        console.data(summary.as_json(reports))
        return
    for table in tables.for_report(reports, name):
        tables.show(table)
