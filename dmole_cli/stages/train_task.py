"""Stage `train-task`: train one task's expert, and nothing else (D-MoLE, arXiv 2506.11672, section 4.3, and baselines)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from dmole_cli import catalog
from dmole_cli.artifacts.expert import SCHEMA, VERSION, ExpertFile, expert_header, read_expert, write_expert
from dmole_cli.artifacts.provenance import Header, up_to_date, versions
from dmole_cli.backbones.adapter import Encoded
from dmole_cli.backbones.pictures import SeenPictures
from dmole_cli.errors import DmoleError
from dmole_cli.experts.routed import Expert, RoutedExperts, new_expert
from dmole_cli.methods.contract import Stage
from dmole_cli.outcome import Outcome, Track, untracked
from dmole_cli.session import Session
from dmole_cli.tasks import TaskCard
from dmole_cli.training.batches import encoded_batches, seed_for, shuffled
from dmole_cli.training.loop import site_shapes, train_expert
from dmole_cli.upstream import check_inputs


def train_task(
    session: Session, task: str, *, method: str = "d-mole", force: bool = False, track: Track = untracked
) -> Outcome:
    """Train one task's expert with a method; writes `experts/<task>.safetensors` (other methods: in their folder).

    Raises:
        DmoleError: an input is missing, stale or another backbone's; the data cannot be read; the loss is not finite.
    """
    config, run = session.config, session.run
    rules = catalog.load("methods", method)
    if not config.tasks or task not in config.tasks:
        config.position(task)
    before = rules.start(config.tasks, task)
    needed = [*rules.needs(run, config.tasks, task), *([run.expert(before, method)] if before else [])]
    data = {f"data:{task}/train": session.data_digest(task, "train")}
    check_inputs(session, needed, data=data)
    recipe = recipe_of(session, session.card(task))
    header = Header(
        SCHEMA,
        VERSION,
        backbone=session.fingerprint,
        seed=config.seed,
        settings={"method": method, **recipe, **rules.settings(config)},
        inputs={**data, **session.digests(*needed)},
        versions=versions("torch", "transformers"),
    )
    path = run.expert(task, method)
    reads = (f"task {task} (train)", f"backbone {config.backbone}", *(str(p) for p in needed))
    redo = session.command("train-task", task, method=method)
    if up_to_date(path, None if force else expert_header(path), header, force=force, command=redo):
        return Outcome("train-task", task, path, written=False, reads=reads)
    with session.measured(f"train-task-{method}", task):
        expert, losses = _train(session, task, method, rules, recipe, track)
        write_expert(path, ExpertFile(expert.sites, expert.scale, header))
    tail = losses[-10:]
    facts = {
        "parameters": sum(p.numel() for p in expert.parameters()),
        "steps": len(losses),
        "first_loss": round(losses[0], 4),
        "last_loss": round(sum(tail) / len(tail), 4),
    }
    return Outcome("train-task", task, path, written=True, reads=reads, facts=facts)


def recipe_of(session: Session, card: TaskCard) -> dict[str, float]:
    """The training recipe: the settings where they are given, the card's values elsewhere."""
    settings = asdict(session.config.train)
    return {key: settings[key] or getattr(card.recipe, key, settings[key]) for key in settings if key != "transfer"}


def _train(
    session: Session, task: str, method: str, rules: ModuleType, recipe: dict[str, float], track: Track
) -> tuple[Expert, list[float]]:
    config, run, backbone = session.config, session.run, session.backbone
    samples = session.samples(task, "train")
    stage = Stage(run, config, task, samples, backbone)
    before = rules.start(config.tasks, task)
    expert = (
        _fresh(stage, rules)
        if before is None
        else _continued(run.expert(before, method), hint=_remake(session, before, method))
    )
    joins: list[tuple[str, ...]] = rules.joins(stage)
    earlier = {
        name: read_expert(run.expert(name, method), hint=_remake(session, name, method))
        for name in sorted({n for row in joins for n in row})
    }
    routed = RoutedExperts(backbone.model, backbone.modality_of, dropout=float(recipe["dropout"]))
    room = config.picture_store * 2**20 if recipe["epochs"] > 1 else 0
    seen = SeenPictures(backbone, folder=run.root / "cache", limit=room)
    try:
        for name, file in earlier.items():
            routed.add(name, Expert(file.sites, file.scale))
        routed.add(task, expert)
        order = shuffled(
            len(samples),
            int(recipe["batch_size"]),
            epochs=int(recipe["epochs"]),
            seed=seed_for(config.seed, task, "order"),
            lengths=backbone.text_lengths(samples),
        )
        encoded = encoded_batches(backbone, samples, order, with_answer=True)
        # Seeded here and for this task alone, or dropout would depend on what the process did before.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_for(config.seed, task, "dropout"))
            losses = train_expert(
                backbone,
                routed,
                expert,
                _routed_batches(task, stage, joins, order, track(encoded, f"train {task} ({method})", len(order))),
                steps=len(order),
                learning_rate=recipe["learning_rate"],
                settings=config.train,
                seen=seen,
            )
    finally:
        routed.close()
        seen.close()
    return expert, losses


def _routed_batches(
    task: str,
    stage: Stage,
    joins: Sequence[tuple[str, ...]],
    order: Sequence[Sequence[int]],
    encoded: Iterable[list[Encoded]],
) -> Iterator[tuple[list[str], list[tuple[str, ...]], list[Encoded]]]:
    for rows, batch in zip(order, encoded, strict=True):
        yield [stage.samples[i].sample_id for i in rows], [(task, *joins[i]) for i in rows], batch


def _fresh(stage: Stage, rules: ModuleType) -> Expert:
    placement: dict[str, int] = rules.place(stage)
    widths: dict[str, tuple[int, int]] = {}
    for site in placement:
        try:
            module: Any = stage.backbone.model.get_submodule(site)
        except AttributeError as error:
            raise DmoleError(
                f"the backbone has no module '{site}'",
                f"make the allocation again: dmole allocate --task {stage.task} --force",
            ) from error
        widths[site] = (module.in_features, module.out_features)
    generator = torch.Generator().manual_seed(seed_for(stage.config.seed, stage.task, "expert"))
    return new_expert(site_shapes(placement, widths), scale=rules.scale(stage), generator=generator)


def _remake(session: Session, task: str, method: str) -> str:
    return f"make it again with: {session.command('train-task', task, method=method)} --force"


def _continued(path: Path, *, hint: str) -> Expert:
    file = read_expert(path, hint=hint)
    sites = {site: (a.clone().requires_grad_(), b.clone().requires_grad_()) for site, (a, b) in file.sites.items()}
    return Expert(sites, file.scale, trainable=True)
