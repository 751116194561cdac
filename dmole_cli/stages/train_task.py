"""Stage `train-task`: train one task's expert, and nothing else (D-MoLE, arXiv 2506.11672, section 4.3, and baselines)."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from decimal import Decimal
from pathlib import Path

import torch

from dmole_cli.artifacts.expert import (
    SCHEMA,
    VERSION,
    ExpertFile,
    expert_header,
    is_imported,
    read_expert,
    write_expert,
)
from dmole_cli.artifacts.memory import memory_header, read_memory, write_memory
from dmole_cli.artifacts.outcome import Outcome
from dmole_cli.artifacts.provenance import Header, differences, up_to_date, versions
from dmole_cli.artifacts.staleness import check_inputs
from dmole_cli.backbones.backbone import Encoded
from dmole_cli.backbones.batches import encoded_batches
from dmole_cli.backbones.checkpointing import activation_checkpointing
from dmole_cli.backbones.truncation import record_truncated
from dmole_cli.backbones.vision_cache import VisionFeatureCache
from dmole_cli.data.loading import TaskCard
from dmole_cli.data.sample import Picked, Sample
from dmole_cli.data.seeds import seed_for
from dmole_cli.errors import DmoleError
from dmole_cli.experts.routed import Expert, RoutedExperts
from dmole_cli.methods.base import LoadedStage, Stage, Training, load_method
from dmole_cli.progress import Track, untracked
from dmole_cli.session import Session
from dmole_cli.training.loop import Losses, train_expert
from dmole_cli.training.order import shuffled_batches


def train_task(
    session: Session, task: str, *, method: str = "d-mole", force: bool = False, track: Track = untracked
) -> Outcome:
    """Train one task's expert with a method; writes `experts/<task>.safetensors` (other methods: in their folder).

    Raises:
        DmoleError: an input is missing, stale or another backbone's; the data cannot be read; the loss is not finite.
    """
    config, run = session.config, session.run
    rules = load_method(method)
    config.position(task)
    path = run.expert(task, method)
    made = None if force else expert_header(path)
    if made is not None and is_imported(made):
        # Nothing that is set here has shaped it, so nothing here makes it stale; only who says so trains in its place.
        check_inputs(session, [path])
        return Outcome("train-task", task, path, written=False, facts={"imported": True})
    if task not in rules.stages(config.tasks):
        there = ", ".join(rules.stages(config.tasks)) or "none"
        raise DmoleError(f"method {method} trains nothing at task {task}", f"tasks at which it trains: {there}")
    stage = Stage(rules, run, config, rules.options(config), task)
    before = rules.start(config.tasks, task)
    needed = rules.needs(stage)
    if before:
        needed = [*needed, run.expert(before, method), *([run.memory(before, method)] if rules.remembers else [])]
    shares = rules.data(config.tasks, task, stage.options)
    data = {f"data:{name}/train": session.data_digest(name, "train") for name in shares}
    check_inputs(session, needed, data=data)
    recipe = recipe_of(session, session.card(task), stage.options)
    header = Header(
        SCHEMA,
        VERSION,
        backbone=session.fingerprint,
        seed=config.seed,
        settings={
            "method": method,
            "precision": session.precision,
            **recipe,
            **rules.settings(config),
            "options": dict(stage.options),
        },
        inputs={**data, **session.digests(*needed)},
        versions=versions("torch", "transformers"),
    )
    reads = (*(f"task {name} (train)" for name in shares), f"backbone {config.backbone}", *(str(p) for p in needed))
    redo = session.command("train-task", task, method=method)
    done = up_to_date(path, made, header, force=force, command=redo)
    if done and (not rules.remembers or _kept(run.memory(task, method), header)):
        return Outcome("train-task", task, path, written=False, reads=reads)
    backbone = session.load()
    with session.measured(f"train-task-{method}", task):
        samples = training_samples(session, task, shares)
        loaded = LoadedStage(rules, run, config, stage.options, task, samples, backbone)
        expert, memory, losses, shortened = _train(session, loaded, recipe, track)
        if rules.remembers:
            # First, because the expert is what says that the work is done.
            write_memory(run.memory(task, method), memory, header)
        told = {"shortened": shortened} if config.train.max_length else {}
        write_expert(path, ExpertFile(expert.sites, expert.scale, replace(header, facts=told), expert.gates))
    facts = {
        "parameters": sum(p.numel() for p in expert.parameters()),
        "steps": len(losses.answers),
        "first_loss": round(losses.answers[0], 4),
        "last_loss": _last(losses.answers),
        **told,
    }
    if losses.penalty:
        facts["last_penalty"] = _last(losses.penalty)
    return Outcome("train-task", task, path, written=True, reads=reads, facts=facts)


def _last(values: Sequence[float]) -> float:
    """Mean of the last steps."""
    tail = values[-10:]
    return round(sum(tail) / len(tail), 4)


def _kept(memory: Path, header: Header) -> bool:
    """Whether the memory is there that was written with an expert of this header."""
    made = memory_header(memory)
    return made is not None and not differences(made, header)


def training_samples(session: Session, task: str, shares: Mapping[str, float]) -> Sequence[Sample]:
    """What trains: the task's own samples first, then a seeded choice of the others', each in the order of its split.

    The choice does not depend on the task that trains: what is seen again at every later stage are the same samples, so
    that the share is also what would have to be stored.

    Args:
        session: knows the splits and the seed.
        task: the one that trains.
        shares: task -> part of its training split, from 0 to 1, rounded up to whole samples.
    """
    splits, chosen, before = list[Sequence[Sample]](), array("q"), 0
    for name in sorted(shares, key=lambda other: other != task):
        split = session.samples(name, "train")
        # As the decimal that the user wrote: in binary, 0.55 of 100 comes out over 55.
        count = math.ceil(Decimal(str(shares[name])) * len(split))
        generator = torch.Generator().manual_seed(seed_for(session.config.seed, name, "share"))
        rows = torch.randperm(len(split), generator=generator)[:count]
        chosen.extend(before + row for row in sorted(rows.tolist()))
        splits.append(split)
        before += len(split)
    return Picked(splits, chosen)


def recipe_of(session: Session, card: TaskCard, options: Mapping[str, float]) -> dict[str, float]:
    """The training recipe: the settings where they are given, then the method's learning rate, the card's values elsewhere."""
    settings = asdict(session.config.train)
    settings["learning_rate"] = settings["learning_rate"] or options["learning_rate"]
    # `transfer` is a rule and `checkpointing` changes no bit of the result: neither belongs to the recipe. A limit does where
    # there is one.
    without = {"transfer", "checkpointing", *(() if settings["max_length"] else ("max_length",))}
    keys = [key for key in settings if key not in without]
    recipe = {key: settings[key] or getattr(card.recipe, key, settings[key]) for key in keys}
    # Only where there are any: without them the header is what it was before there was such a thing.
    return recipe | ({"repeats": card.recipe.repeats} if card.recipe.repeats > 1 else {})


def _train(
    session: Session, stage: LoadedStage, recipe: Mapping[str, float], track: Track
) -> tuple[Expert, dict[str, torch.Tensor], Losses, int]:
    """The trained expert, what the method remembers of it, its losses, and how many samples were shortened."""
    config, run, backbone, rules, task = stage.config, stage.run, stage.backbone, stage.method, stage.task
    before = rules.start(config.tasks, task)
    generator = torch.Generator().manual_seed(seed_for(config.seed, task, "expert"))
    expert = rules.fresh(stage, generator) if before is None else _continued(session, before, rules.name)
    memory = {}
    if before and rules.remembers:
        memory = read_memory(run.memory(before, rules.name), hint=_remake(session, before, rules.name))
    joins = rules.joins(stage)
    routed = RoutedExperts(backbone.model, backbone.modality_of, dropout=float(recipe["dropout"]))
    repeats, count = int(recipe.get("repeats", 1)), len(stage.samples)
    room = config.picture_store * 2**20 if recipe["epochs"] * repeats > 1 else 0
    seen = VisionFeatureCache(backbone, folder=run.root / "cache", limit=room)
    try:
        for name in sorted({n for row in joins for n in row}):
            file = read_expert(run.expert(name, rules.name), hint=_remake(session, name, rules.name))
            routed.add(name, Expert(file.sites, file.scale, gates=file.gates))
        routed.add(task, expert)
        if rules.MERGES:
            routed.merge(joins[0])
            joins = [() for _ in joins]
        training = Training(routed, expert, memory)
        order = shuffled_batches(
            count * repeats,
            int(recipe["batch_size"]),
            epochs=int(recipe["epochs"]),
            seed=seed_for(config.seed, task, "order"),
            lengths=backbone.lengths(stage.samples, with_answer=True) * repeats,
            joins=list(joins) * repeats,
        )
        order = [[row % count for row in batch] for batch in order]
        limit = config.train.max_length
        shortened = set[int]()
        batches = encoded_batches(backbone, stage.samples, order, with_answer=True, max_length=limit)
        encoded = record_truncated(order, batches, truncated=shortened)
        # Seeded here and for this task alone, or dropout would depend on what the process did before.
        saving = activation_checkpointing(backbone) if config.train.checkpointing else nullcontext()
        with torch.random.fork_rng(devices=[]), saving:
            torch.manual_seed(seed_for(config.seed, task, "dropout"))
            losses = train_expert(
                backbone,
                routed,
                expert,
                _routed_batches(stage, joins, order, track(encoded, f"train {task} ({rules.name})", len(order))),
                steps=len(order),
                learning_rate=recipe["learning_rate"],
                settings=config.train,
                penalty=rules.penalty(stage, training),
                seen=seen,
            )
        routed.dropout = 0.0
        remembered = rules.remember(stage, training)
    finally:
        routed.close()
        seen.close()
    return expert, remembered, losses, len(shortened)


def _routed_batches(
    stage: LoadedStage,
    joins: Sequence[tuple[str, ...]],
    order: Sequence[Sequence[int]],
    encoded: Iterable[list[Encoded]],
) -> Iterator[tuple[list[str], list[tuple[str, ...]], list[Encoded]]]:
    for rows, batch in zip(order, encoded, strict=True):
        yield [stage.samples[i].sample_id for i in rows], [(stage.task, *joins[i]) for i in rows], batch


def _remake(session: Session, task: str, method: str) -> str:
    return f"make it again with: {session.command('train-task', task, method=method)} --force"


def _continued(session: Session, task: str, method: str) -> Expert:
    """The expert of an earlier task, ready to be trained on."""
    file = read_expert(session.run.expert(task, method), hint=_remake(session, task, method))
    device = session.backbone.device

    def copied(matrix: torch.Tensor) -> torch.Tensor:
        return matrix.to(device, copy=True).requires_grad_()

    sites = {site: (copied(a), copied(b)) for site, (a, b) in file.sites.items()}
    gates = {site: copied(gate) for site, gate in file.gates.items()}
    return Expert(sites, file.scale, trainable=True, gates=gates)
