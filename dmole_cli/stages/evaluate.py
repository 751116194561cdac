"""Stage `evaluate`: after every stage, every task; a row per sample, and no generation twice.

Who answers what, with which experts, is decided here; the answering itself, and what is kept of it, is `experts/answering.py`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from dmole_cli.artifacts import evaluation
from dmole_cli.artifacts import likelihood as likelihoods
from dmole_cli.artifacts.evaluation import Answer, write_evaluation
from dmole_cli.artifacts.likelihood import Likelihood, Likelihoods, write_likelihood
from dmole_cli.artifacts.outcome import Outcome
from dmole_cli.artifacts.provenance import Header, up_to_date, versions
from dmole_cli.artifacts.router import RouterFile, read_router
from dmole_cli.artifacts.run import Run
from dmole_cli.artifacts.staleness import check_inputs
from dmole_cli.data.choices import Choices, choices_of
from dmole_cli.data.loading import TaskCard
from dmole_cli.data.sample import Sample
from dmole_cli.errors import DmoleError
from dmole_cli.inference.answering import Asking, Fresh
from dmole_cli.methods.base import Method, Routing, load_method
from dmole_cli.metrics.base import score_answers
from dmole_cli.progress import Track, untracked
from dmole_cli.routing.autoencoder import from_tensors
from dmole_cli.routing.features import routing_features
from dmole_cli.session import Session
from dmole_cli.settings.model import EvaluateSettings

Active = list[tuple[str, ...]]
DEFAULT = EvaluateSettings()


@dataclass(frozen=True)
class Cell:
    """Who answers what after a stage: the experts of each sample, and its loss under each router."""

    active: Active
    losses: list[list[float]]


@dataclass(frozen=True)
class File:
    """One file to make for a cell."""

    stage: int
    path: Path
    header: Header


Todo = list[tuple[File, Cell]]


@dataclass(frozen=True)
class Kind:
    """One of the files that a cell gets.

    Attributes:
        name: in outcomes.
        option: of the command that makes it.
        schema, version: of the file.
        path: (run, method's label, stage, task, split) -> where it lies.
        made: reads its header.
        settings: what of the task's card shapes it.
        write: makes it for some cells of a task, and gives the facts worth saying of each.
    """

    name: str
    option: str
    schema: str
    version: int
    path: Callable[[Run, str, int, str, str], Path]
    made: Callable[[Path], Header | None]
    settings: Callable[[TaskCard], dict[str, Any]]
    write: Callable[[Asking, Todo], list[dict[str, Any]]]


def evaluate(
    session: Session,
    *,
    method: str = "d-mole",
    stages: Sequence[int] | None = None,
    tasks: Sequence[str] | None = None,
    diagonal: bool = False,
    likelihood: bool = False,
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
        diagonal: every task after its own training, too, whatever the stages.
        likelihood: write `likelihoods/<method>/<stage>/<task>.parquet` as well, how likely the right answers are.
        force: compute again what is there.
        track: shows progress.

    Raises:
        DmoleError: an expert or a router is missing, stale or another backbone's; a split cannot be read.
    """
    rules = load_method(method)
    if not rules.uses_routers and routing_options(session.config.evaluate):
        raise DmoleError(
            f"method {method} has no routers", "leave --routing and --threshold-scale to methods that route"
        )
    if stages is None:
        stages = range(trained_stages(session, method) + 1)
    learnt = set(enumerate(session.config.tasks, start=1))
    wanted = [
        (stage, task)
        for stage, task in rules.entries(session.config.tasks, session.config.unseen)
        if (stage in stages or (diagonal and (stage, task) in learnt)) and (tasks is None or task in tasks)
    ]
    if not wanted:
        raise DmoleError(
            f"method {method} has nothing to evaluate there", "see `dmole evaluate --help` for --stage and --task"
        )
    outcomes = []
    for task in dict.fromkeys(task for _, task in wanted):
        cells = [stage for stage, name in wanted if name == task]
        outcomes += _evaluate_task(session, rules, task, cells, likelihood=likelihood, force=force, track=track)
    return outcomes


def trained_stages(session: Session, method: str) -> int:
    """How many tasks of the stream a method has trained, without a gap."""
    training = set(load_method(method).trained_tasks(session.config.tasks))
    tasks = session.config.tasks
    there = [task not in training or session.run.expert(task, method).exists() for task in tasks]
    done = there.index(False) if False in there else len(there)
    return done if training else 0


def _evaluate_task(
    session: Session,
    rules: Method,
    task: str,
    stages: list[int],
    *,
    likelihood: bool,
    force: bool,
    track: Track,
) -> list[Outcome]:
    split, label = session.config.evaluate.split, labelled(rules.name, session.config.evaluate)
    samples, card = session.samples(task, split), session.card(task)
    plans = {stage: _needed(session, rules, task, stage) for stage in stages}
    todo: dict[Kind, list[File]] = {}
    outcomes = []
    for kind in KINDS if likelihood else KINDS[:1]:
        files = [
            File(
                stage,
                kind.path(session.run, label, stage, task, split),
                _header(session, kind, card, rules, stage, plans[stage]),
            )
            for stage in stages
        ]
        todo[kind] = [file for file in files if not _is_done(session, kind, rules.name, task, file, force=force)]
        outcomes += [
            Outcome(f"{kind.name} {label}", task, file.path, written=False, facts={"at_stage": file.stage})
            for file in files
            if file not in todo[kind]
        ]
    missing = sorted({file.stage for files in todo.values() for file in files})
    if not missing:
        return outcomes
    # Likelihoods alone are another work than answers, whose seconds are compared.
    work = "evaluate" if todo[KINDS[0]] else "likelihood"
    with session.measured("-".join([work, *([] if split == "test" else [split]), label]), task, adding=True):
        table = _losses(session, task, missing[-1], track) if rules.uses_routers else None
        cells = {stage: _cell(session, rules, task, stage, samples, table) for stage in missing}
        asking = Asking(session, card, samples, method=rules.name, merges=rules.merges, force=force, track=track)
        for kind, files in todo.items():
            facts = kind.write(asking, [(file, cells[file.stage]) for file in files]) if files else []
            outcomes += [
                Outcome(f"{kind.name} {label}", task, file.path, written=True, facts={"at_stage": file.stage, **told})
                for file, told in zip(files, facts, strict=True)
            ]
    return outcomes


def _is_done(session: Session, kind: Kind, method: str, task: str, file: File, *, force: bool) -> bool:
    chosen = session.config.evaluate
    options = {} if chosen.split == "test" else {"split": chosen.split}
    options |= routing_options(chosen)
    redo = session.command("evaluate", task, stage=file.stage, method=method, **options) + kind.option
    made = None if force else kind.made(file.path)
    return up_to_date(file.path, made, file.header, force=force, command=redo)


def _write_evaluations(asking: Asking, todo: Todo) -> list[dict[str, Any]]:
    """Write the evaluation of each cell; gives the facts worth saying of each."""
    card, samples = asking.card, asking.samples
    answers, fresh = asking.answers(pair for _, cell in todo for pair in enumerate(cell.active))
    references, details = [list(s.references) for s in samples], [dict(s.details) for s in samples]
    facts = []
    for file, cell in todo:
        predictions = [answers[pair] for pair in enumerate(cell.active)]
        scores = score_answers(card.metric, predictions, references=references, details=details)
        rows = [
            Answer(s.sample_id, s.question, p, r, float(score), list(a), m, json.dumps(d, ensure_ascii=False))
            for s, p, r, score, a, m, d in zip(
                samples, predictions, references, scores.samples, cell.active, cell.losses, details, strict=True
            )
        ]
        write_evaluation(file.path, rows, replace(file.header, facts=scores.facts))
        new = _count_new(cell, fresh)
        facts.append(
            {
                card.metric: round(scores.points, 2),
                "samples": len(samples),
                "generated": new,
                "reused": len(samples) - new,
            }
        )
    return facts


def _write_likelihoods(asking: Asking, todo: Todo) -> list[dict[str, Any]]:
    """Write the likelihoods of each cell; gives the facts worth saying of each."""
    samples = asking.samples
    choices = [choices_of(asking.card, sample) for sample in samples]
    pairs = (pair for _, cell in todo for pair in enumerate(cell.active))
    found, fresh = asking.likelihoods(pairs, answers=[choice.answers for choice in choices])
    facts = []
    for file, cell in todo:
        rows = [
            _likelihood(sample, choice, found[pair], pair[1])
            for sample, choice, pair in zip(samples, choices, enumerate(cell.active), strict=True)
        ]
        write_likelihood(file.path, rows, file.header)
        ranked = [row.ranked_first for row in rows if row.ranked_first is not None]
        new = _count_new(cell, fresh)
        facts.append(
            {
                "log_likelihood": round(fmean(row.log_likelihood for row in rows), 4),
                **({"ranked_first": round(100 * fmean(ranked), 2)} if ranked else {}),
                "samples": len(samples),
                "scored": new,
                "reused": len(samples) - new,
            }
        )
    return facts


def _likelihood(sample: Sample, choices: Choices, found: Likelihoods, active: tuple[str, ...]) -> Likelihood:
    """One row from what the model makes of a sample's references, and of its closed set if it has one.

    Answers are ranked by their whole probability, not by the token: that is what an answer given freely is drawn by.
    """
    means = [total / tokens for total, tokens in zip(found.sums, found.tokens, strict=True)]
    first = None
    if choices.right is not None:
        right = [value for value, is_right in zip(found.sums, choices.right, strict=True) if is_right]
        wrong = [value for value, is_right in zip(found.sums, choices.right, strict=True) if not is_right]
        first = max(right) > max(wrong, default=-math.inf)
    return Likelihood(sample.sample_id, max(means[: choices.references]), first, list(active))


def _count_new(cell: Cell, fresh: Fresh) -> int:
    """How much was computed for this cell; what several cells share was computed for the first of them."""
    new = {(i, frozenset(active)) for i, active in enumerate(cell.active)} & fresh
    fresh -= new
    return len(new)


def labelled(method: str, chosen: EvaluateSettings) -> str:
    """The name that evaluations of a method have: its own, and what differs from the usual routing behind an `@`."""
    return "@".join([method, *routing_options(chosen).values()])


def routing_options(chosen: EvaluateSettings) -> dict[str, str]:
    """The options of `evaluate` that differ from the usual routing."""
    found: dict[str, str] = {}
    if chosen.routing != DEFAULT.routing:
        found["routing"] = chosen.routing
    if chosen.threshold_scale != DEFAULT.threshold_scale:
        found["threshold_scale"] = f"{chosen.threshold_scale:g}"
    return found


def _needed(session: Session, rules: Method, task: str, stage: int) -> list[Path]:
    """Experts and routers that an evaluation after this stage may use; checks that they are there and current."""
    if stage == 0:
        return []
    method, trained = rules.name, session.config.tasks[:stage]
    used: Sequence[str] = trained
    if not rules.uses_routers:
        [used] = rules.active_experts(_routing(session, trained, task, [[]], []))
    for name in used:
        if not session.run.expert(name, method).exists():
            raise DmoleError(
                f"{session.run.expert(name, method)} is not there: stage {stage} of {method} has not been trained",
                f"make it with: {session.command('train-task', name, method=method)}",
            )
    experts = [session.run.expert(name, method) for name in used]
    paths = [*experts, *(session.run.router(name) for name in used if rules.uses_routers)]
    check_inputs(session, paths)
    return paths


def _header(session: Session, kind: Kind, card: TaskCard, rules: Method, stage: int, needed: list[Path]) -> Header:
    split = session.config.evaluate.split
    settings = {"method": rules.name, "stage": stage, "precision": session.precision, **kind.settings(card)}
    if rules.uses_routers:
        chosen = session.config.evaluate
        settings |= {"routing": chosen.routing, "threshold_scale": chosen.threshold_scale}
        if chosen.routing == "batch-vote":
            settings["batch_size"] = chosen.batch_size
    return Header(
        kind.schema,
        kind.version,
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
    features = routing_features(session, task, session.config.evaluate.split, track=track)
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
    task: str,
    stage: int,
    samples: Sequence[Sample],
    table: dict[str, tuple[RouterFile, list[float]]] | None,
) -> Cell:
    trained = session.config.tasks[:stage]
    columns = [table[name][1] for name in trained] if table else []
    losses = [list(row) for row in zip(*columns, strict=True)] if columns else [[] for _ in samples]
    scale = session.config.evaluate.threshold_scale
    thresholds = [table[name][0].threshold * scale for name in trained] if table else []
    active: Active = [() for _ in samples]
    if stage:
        active = rules.active_experts(_routing(session, trained, task, losses, thresholds))
    return Cell(active, losses)


KINDS = (
    Kind(
        "evaluate",
        "",
        evaluation.SCHEMA,
        evaluation.VERSION,
        Run.evaluation,
        evaluation.evaluation_header,
        lambda card: {"metric": card.metric, "generation": asdict(card.generation)},
        _write_evaluations,
    ),
    Kind(
        "likelihood",
        " --likelihood",
        likelihoods.SCHEMA,
        likelihoods.VERSION,
        Run.likelihood,
        likelihoods.likelihood_header,
        lambda card: {"answers": list(card.answers)},
        _write_likelihoods,
    ),
)
