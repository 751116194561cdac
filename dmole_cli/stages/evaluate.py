"""Stage `evaluate`: after every stage, every task; a row per sample, and no generation twice.

An answer is a function of the backbone, the sample, the experts that are active for it, the generation settings and the
precision. Answers are kept in the run directory under a key of exactly these, so that of the (T + 1) x T cells only the
distinct keys are generated, whatever methods, stages and tasks are asked for.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from dmole_cli import catalog
from dmole_cli.artifacts.evaluation import SCHEMA, VERSION, Answer, evaluation_header, write_evaluation
from dmole_cli.artifacts.expert import read_expert
from dmole_cli.artifacts.files import digest_of, digest_of_file
from dmole_cli.artifacts.generations import read_generations, write_generations
from dmole_cli.artifacts.provenance import Header, up_to_date, versions
from dmole_cli.artifacts.router import RouterFile, read_router
from dmole_cli.backbones.pictures import SeenPictures
from dmole_cli.config import EvaluateSettings
from dmole_cli.errors import DmoleError
from dmole_cli.experts.autoencoder import from_tensors
from dmole_cli.experts.routed import Expert, RoutedExperts
from dmole_cli.methods.contract import Method, Routing, load_method
from dmole_cli.outcome import Outcome, Track, untracked
from dmole_cli.sample import Sample
from dmole_cli.session import Session
from dmole_cli.tasks import TaskCard
from dmole_cli.training.batches import encoded_batches
from dmole_cli.training.features import features_of
from dmole_cli.training.loop import looking
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
        answers, fresh = _answers(session, card, samples, cells, rules, force=force, track=track)
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


def _answers(
    session: Session,
    card: TaskCard,
    samples: Sequence[Sample],
    cells: list[Cell],
    rules: Method,
    *,
    force: bool,
    track: Track,
) -> tuple[dict[tuple[int, tuple[str, ...]], str], set[tuple[int, frozenset[str]]]]:
    """Answers by (sample index, experts), kept ones where they are there; and which (sample, set) are new."""
    names = sorted({name for cell in cells for active in cell.active for name in active})
    digests = {name: digest_of_file(session.run.expert(name, rules.name)) for name in names}
    common = [session.fingerprint, asdict(card.generation), session.precision]
    pictures = session.picture_digests(card.name, session.config.evaluate.split)

    def key(index: int, active: tuple[str, ...]) -> str:
        sample = samples[index]
        looked_at = [sample.sources, [pictures[file] for file in sample.files]]
        return digest_of([*common, sample.sample_id, sample.question, *looked_at, sorted(digests[n] for n in active)])

    wanted = {(i, active): key(i, active) for cell in cells for i, active in enumerate(cell.active)}
    path = session.run.generations(card.name, session.config.evaluate.split)
    kept = {} if force else read_generations(path)
    # Two routes to the same set of experts (in another order) are one key, generated once.
    missing = {k: pair for pair, k in wanted.items() if k not in kept}
    if missing:
        fresh = _generate(session, card, samples, list(missing.values()), rules, track)
        kept = {**read_generations(path), **dict(zip(missing, fresh, strict=True))}
        write_generations(path, kept, session.fingerprint)
    return {pair: kept[k] for pair, k in wanted.items()}, {(i, frozenset(active)) for i, active in missing.values()}


def _generate(
    session: Session,
    card: TaskCard,
    samples: Sequence[Sample],
    pairs: list[tuple[int, tuple[str, ...]]],
    rules: Method,
    track: Track,
) -> list[str]:
    """Greedy answers of (sample index, experts) pairs, batched by experts and length of the prompt."""
    backbone = session.backbone
    lengths = backbone.lengths(samples, with_answer=False)
    order = sorted(range(len(pairs)), key=lambda p: (pairs[p][1], lengths[pairs[p][0]], pairs[p][0]))
    batches = _batches(order, [active for _, active in pairs], session.config.evaluate.batch_size, apart=rules.MERGES)
    method = rules.name
    routed = RoutedExperts(backbone.model, backbone.modality_of)
    for name in sorted({name for _, active in pairs for name in active}):
        redo = f"make it again with: {session.command('train-task', name, method=method)} --force"
        file = read_expert(session.run.expert(name, method), hint=redo)
        routed.add(name, Expert(file.sites, file.scale, gates=file.gates))
    # Worth its place only where a sample is answered more than once without an expert that looks at its pictures.
    blind = [i for i, active in pairs if not looking(backbone, routed, [active])]
    room = session.config.picture_store * 2**20 if len(set(blind)) < len(blind) else 0
    seen = SeenPictures(backbone, folder=session.run.root / "cache", limit=room)
    out = [""] * len(pairs)
    try:
        rows_of = [[pairs[p][0] for p in batch] for batch in batches]
        encoded = encoded_batches(backbone, samples, rows_of, with_answer=False)
        for batch, rows in zip(batches, track(encoded, f"evaluate {card.name} ({method})", len(batches)), strict=True):
            inputs, vision_rows = backbone.collate(rows, left=True)
            sets = [pairs[p][1] for p in batch]
            if rules.MERGES:
                routed.merge(sets[0])
            if not looking(backbone, routed, sets):
                inputs = seen.replace(inputs, rows)
            beside = [() for _ in sets] if rules.MERGES else sets
            with routed.route(beside, rows=vision_rows, device=backbone.device, dtype=backbone.compute_dtype):
                texts = backbone.generate(
                    inputs,
                    max_new_tokens=card.generation.max_new_tokens,
                    min_new_tokens=card.generation.min_new_tokens,
                    leave=routed.keep,
                )
            for p, text in zip(batch, texts, strict=True):
                out[p] = text
    finally:
        routed.close()
        seen.close()
    return out


def _batches(order: list[int], active: Active, size: int, *, apart: bool) -> list[list[int]]:
    """Batches of indices in a given order; `apart`: none holds two sets of experts."""
    groups = [list(group) for _, group in groupby(order, key=active.__getitem__)] if apart else [order]
    return [group[i : i + size] for group in groups for i in range(0, len(group), size)]
