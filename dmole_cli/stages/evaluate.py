"""Stage `evaluate`: after every stage, every task; a row per sample, and no generation twice.

Who answers what, with which experts, is decided here; the answering itself, and what is kept of it, is `experts/answering.py`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dmole_cli import catalog
from dmole_cli.artifacts.evaluation import SCHEMA, VERSION, Answer, evaluation_header, write_evaluation
from dmole_cli.artifacts.provenance import Header, up_to_date, versions
from dmole_cli.artifacts.router import RouterFile, read_router
from dmole_cli.config import EvaluateSettings
from dmole_cli.errors import DmoleError
from dmole_cli.experts.answering import Asking
from dmole_cli.experts.autoencoder import from_tensors
from dmole_cli.methods.contract import Method, Routing, load_method
from dmole_cli.outcome import Outcome, Track, untracked
from dmole_cli.sample import Sample
from dmole_cli.session import Session
from dmole_cli.tasks import TaskCard
from dmole_cli.training.features import features_of
from dmole_cli.upstream import check_inputs

Active = list[tuple[str, ...]]
DEFAULT = EvaluateSettings()


@dataclass(frozen=True)
class Cell:
    """One evaluation file to make: who answers what, with which experts."""

    method: str
    stage: int
    path: Path
    header: Header
    active: Active
    losses: list[list[float]]


def evaluate(
    session: Session,
    *,
    method: str = "d-mole",
    stages: Sequence[int] | None = None,
    tasks: Sequence[str] | None = None,
    force: bool = False,
    track: Track = untracked,
) -> list[Outcome]:
    """Evaluate a method on the cells of its matrix; writes `evaluations/<method>/<stage>/<task>.parquet`
    (for the validation split, below `evaluations.validation/`).

    Args:
        session: configuration, run directory, backbone.
        method: a file of `methods/`.
        stages: which stages (0 = the pretrained backbone), None = those trained so far.
        tasks: which tasks, None = the stream and the unseen ones.
        force: generate again what is there.
        track: shows progress.

    Raises:
        DmoleError: an expert or a router is missing, stale or another backbone's; a split cannot be read.
    """
    rules = load_method(method)
    chosen = session.config.evaluate
    if not rules.USES_ROUTERS and (chosen.routing, chosen.threshold_scale) != (
        DEFAULT.routing,
        DEFAULT.threshold_scale,
    ):
        raise DmoleError(
            f"method {method} has no routers", "leave --routing and --threshold-scale to methods that route"
        )
    if stages is None:
        stages = range(trained_stages(session, method) + 1)
    wanted = [
        (stage, task)
        for stage, task in rules.cells(session.config.tasks, session.config.unseen)
        if stage in stages and (tasks is None or task in tasks)
    ]
    if not wanted:
        raise DmoleError(
            f"method {method} has nothing to evaluate there", "see `dmole evaluate --help` for --stage and --task"
        )
    outcomes = []
    for task in dict.fromkeys(task for _, task in wanted):
        outcomes += _evaluate_task(
            session, rules, method, task, [s for s, t in wanted if t == task], force=force, track=track
        )
    return outcomes


def trained_stages(session: Session, method: str) -> int:
    """How many tasks of the stream a method has trained, without a gap."""
    training = set(load_method(method).stages(session.config.tasks))
    tasks = session.config.tasks
    there = [task not in training or session.run.expert(task, method).exists() for task in tasks]
    done = there.index(False) if False in there else len(there)
    return done if training else 0


def _evaluate_task(
    session: Session, rules: Method, method: str, task: str, stages: list[int], *, force: bool, track: Track
) -> list[Outcome]:
    split = session.config.evaluate.split
    samples, card = session.samples(task, split), session.card(task)
    plans = {stage: _needed(session, rules, method, task, stage) for stage in stages}
    headers = {stage: _header(session, card, rules, method, stage, plans[stage]) for stage in stages}
    label = labelled(method, session.config.evaluate)
    paths = {stage: session.run.evaluation(label, stage, task, split) for stage in stages}
    chosen = {} if split == "test" else {"split": split}
    chosen |= routing_options(session.config.evaluate)
    redo = {stage: session.command("evaluate", task, stage=stage, method=method, **chosen) for stage in stages}
    todo = [
        stage
        for stage, path in paths.items()
        if not up_to_date(
            path, None if force else evaluation_header(path), headers[stage], force=force, command=redo[stage]
        )
    ]
    outcomes = [
        Outcome(
            f"evaluate {label}",
            task,
            paths[stage],
            written=False,
            facts={"at_stage": stage},
        )
        for stage in stages
        if stage not in todo
    ]
    if not todo:
        return outcomes
    with session.measured("-".join(["evaluate", *([] if split == "test" else [split]), label]), task, adding=True):
        table = _losses(session, task, max(todo), track) if rules.USES_ROUTERS else None
        cells = [_cell(session, rules, method, task, stage, samples, headers[stage], table) for stage in todo]
        asking = Asking(session, card, samples, method=method, merges=rules.MERGES, force=force, track=track)
        answers, fresh = asking.answers(pair for cell in cells for pair in enumerate(cell.active))
        metric = catalog.load("metrics", card.metric)
        references, details = [list(s.references) for s in samples], [dict(s.details) for s in samples]
        for cell in cells:
            predictions = [answers[i, active] for i, active in enumerate(cell.active)]
            scores = metric.score(predictions, references=references, details=details)
            rows = [
                Answer(s.sample_id, s.question, p, r, float(score), list(a), m, json.dumps(d, ensure_ascii=False))
                for s, p, r, score, a, m, d in zip(
                    samples, predictions, references, scores, cell.active, cell.losses, details, strict=True
                )
            ]
            write_evaluation(cell.path, rows, cell.header)
            points = metric.UNIT_SCALE * sum(scores) / len(scores)
            # An answer that several cells share was generated for the first of them.
            new = {(i, frozenset(active)) for i, active in enumerate(cell.active)} & fresh
            fresh -= new
            facts = {
                "at_stage": cell.stage,
                card.metric: round(points, 2),
                "samples": len(samples),
                "generated": len(new),
                "reused": len(samples) - len(new),
            }
            outcomes.append(Outcome(f"evaluate {label}", task, cell.path, written=True, facts=facts))
    return outcomes


def labelled(method: str, chosen: EvaluateSettings) -> str:
    """The name that evaluations of a method have: its own, and what differs from the usual routing behind an `@`."""
    return "@".join(
        [
            method,
            *(f"{value:g}" if key == "threshold_scale" else value for key, value in routing_options(chosen).items()),
        ]
    )


def routing_options(chosen: EvaluateSettings) -> dict[str, Any]:
    """The options of `evaluate` that differ from the usual routing."""
    found = {"routing": chosen.routing, "threshold_scale": chosen.threshold_scale}
    return {key: value for key, value in found.items() if value != getattr(DEFAULT, key)}


def _needed(session: Session, rules: Method, method: str, task: str, stage: int) -> list[Path]:
    """Experts and routers that an evaluation after this stage may use; checks that they are there and current."""
    if stage == 0:
        return []
    trained = session.config.tasks[:stage]
    used: Sequence[str] = trained
    if not rules.USES_ROUTERS:
        [used] = rules.active(_routing(session, trained, task, [[]], []))
    for name in used:
        if not session.run.expert(name, method).exists():
            raise DmoleError(
                f"{session.run.expert(name, method)} is not there: stage {stage} of {method} has not been trained",
                f"make it with: {session.command('train-task', name, method=method)}",
            )
    experts = [session.run.expert(name, method) for name in used]
    paths = [*experts, *(session.run.router(name) for name in used if rules.USES_ROUTERS)]
    check_inputs(session, paths)
    return paths


def _header(
    session: Session,
    card: TaskCard,
    rules: Method,
    method: str,
    stage: int,
    needed: list[Path],
) -> Header:
    split = session.config.evaluate.split
    settings = {"method": method, "stage": stage, "metric": card.metric, "generation": asdict(card.generation)}
    settings["precision"] = session.precision
    if rules.USES_ROUTERS:
        chosen = session.config.evaluate
        settings |= {"routing": chosen.routing, "threshold_scale": chosen.threshold_scale}
        if chosen.routing == "batch-vote":
            settings["batch_size"] = chosen.batch_size
    return Header(
        SCHEMA,
        VERSION,
        backbone=session.fingerprint,
        settings=settings,
        inputs={f"data:{card.name}/{split}": session.data_digest(card.name, split), **session.digests(*needed)},
        versions=versions("torch", "transformers"),
    )


def _losses(session: Session, task: str, last: int, track: Track) -> dict[str, tuple[RouterFile, list[float]]]:
    """Reconstruction losses of a task's samples under every router up to a stage: trained task -> (router, losses)."""
    trained = session.config.tasks[:last]
    if not trained:
        return {}
    features = features_of(session, task, session.config.evaluate.split, track=track)
    table = {}
    for name in trained:
        redo = session.command("train-router", name)
        router = read_router(session.run.router(name), hint=f"make it with: {redo}")
        session.require_backbone(session.run.router(name), router.header.backbone, redo)
        table[name] = (router, from_tensors(router.tensors, decoder=router.decoder).losses(features).tolist())
    return table


def _routing(
    session: Session, trained: Sequence[str], task: str, losses: list[list[float]], thresholds: list[float]
) -> Routing:
    chosen = session.config.evaluate
    return Routing(trained, task, losses, thresholds, chosen.routing, chosen.batch_size)


def _cell(
    session: Session,
    rules: Method,
    method: str,
    task: str,
    stage: int,
    samples: Sequence[Sample],
    header: Header,
    table: dict[str, tuple[RouterFile, list[float]]] | None,
) -> Cell:
    trained = session.config.tasks[:stage]
    columns = [table[name][1] for name in trained] if table else []
    losses = [list(row) for row in zip(*columns, strict=True)] if columns else [[] for _ in samples]
    scale = session.config.evaluate.threshold_scale
    thresholds = [table[name][0].threshold * scale for name in trained] if table else []
    active: Active = [() for _ in samples]
    if stage:
        active = rules.active(_routing(session, trained, task, losses, thresholds))
    chosen = session.config.evaluate
    path = session.run.evaluation(labelled(method, chosen), stage, task, chosen.split)
    return Cell(method, stage, path, header, active, losses)
