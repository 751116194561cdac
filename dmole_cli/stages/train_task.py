"""Stage `train-task`: train one task's expert, and nothing else (D-MoLE, arXiv 2506.11672, section 4.3, and baselines)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dmole_cli.artifacts.costs import measured
from dmole_cli.artifacts.expert import ExpertFile, is_imported, read_expert, write_expert
from dmole_cli.artifacts.headers import header_of, is_current
from dmole_cli.artifacts.kinds import D_MOLE, EXPERT, MEMORY
from dmole_cli.artifacts.memory import read_memory, write_memory
from dmole_cli.artifacts.outcome import Outcome
from dmole_cli.artifacts.provenance import Header, differences, versions
from dmole_cli.artifacts.run import Run
from dmole_cli.artifacts.staleness import check_inputs
from dmole_cli.backbones.backbone import Encoded
from dmole_cli.backbones.batches import encoded_batches
from dmole_cli.backbones.checkpointing import activation_checkpointing
from dmole_cli.backbones.inputs import Lengths
from dmole_cli.backbones.lazy_model import LazyModel
from dmole_cli.backbones.truncation import record_truncated
from dmole_cli.backbones.vision_cache import VisionFeatureCache
from dmole_cli.data.recipes import few_steps
from dmole_cli.data.seeds import seed_for
from dmole_cli.data.tasks import Tasks
from dmole_cli.errors import DmoleError
from dmole_cli.experts.expert import Expert, load_expert
from dmole_cli.experts.routed import RoutedExperts
from dmole_cli.methods._stream import require_stream
from dmole_cli.methods.base import LoadedContext, TaskContext, Training, load_method
from dmole_cli.progress import Track, quiet
from dmole_cli.settings.model import Settings
from dmole_cli.training.loop import Batch, Losses, Schedule, train_expert
from dmole_cli.training.order import shuffled_batches
from dmole_cli.training.samples import Recipe, recipe_for, row_counts, training_samples


@dataclass(frozen=True)
class Trained:
    """Result of a training run.

    Attributes:
        expert: the trained expert.
        memory: tensors that the method stores for the next task.
        losses: per step.
        truncated: number of samples whose question was truncated.
    """

    expert: Expert
    memory: dict[str, torch.Tensor]
    losses: Losses
    truncated: int


def train_task(
    task: str,
    *,
    settings: Settings,
    data: Tasks,
    model: LazyModel,
    run: Run,
    method: str = D_MOLE,
    force: bool = False,
    track: Track = quiet,
) -> Outcome:
    """Train one task's expert with a method; writes `experts/<task>.safetensors` (other methods: in a folder of their own).

    Raises:
        DmoleError: an input is missing, stale or another backbone's; the data cannot be read; the loss is not finite.
    """
    rules = load_method(method)
    settings.position(task)
    path = run.expert(task, method)
    made = None if force else header_of(path, EXPERT)
    if made is not None and is_imported(made):
        # No setting has shaped an imported expert, so no setting makes it stale; only --force trains another in its place.
        check_inputs(run, [path], fingerprint=model.fingerprint, data=data.current_digest)
        return Outcome("train-task", task, path, facts={"imported": True})
    trained_tasks = rules.trained_tasks(settings.tasks)
    if task not in trained_tasks:
        raise DmoleError(
            f"method {method} trains nothing at task {task}",
            f"tasks at which it trains: {', '.join(trained_tasks) or 'none'}",
        )
    context = TaskContext(rules, run, settings, rules.option_values(settings), task)
    shares = rules.data_shares(settings.tasks, task, context.options)
    inputs = data.inputs(*((name, "train") for name in shares))
    needed = [*rules.inputs(context), *_previous_artifacts(context)]
    if rules.protocol == "sequential":
        require_stream(rules, settings, run, settings.earlier(task))
    _require_same_shape(context)
    recipe = recipe_for(
        task,
        {name: data.card(name) for name in shares},
        chosen=settings.train,
        options=context.options,
        rows=row_counts(task, shares, data=data),
        own_epochs=rules.protocol == "joint",
    )
    header = Header.of(
        EXPERT,
        backbone=model.fingerprint,
        seed=settings.seed,
        settings={
            "method": method,
            "precision": model.precision,
            **recipe.settings,
            **rules.header_settings(settings),
            "options": dict(context.options),
        },
        inputs={**inputs, **check_inputs(run, needed, fingerprint=model.fingerprint, data=data.current_digest)},
        versions=versions("torch", "transformers"),
    )
    reads = (*(f"task {name} (train)" for name in shares), f"backbone {model.name}", *map(str, needed))
    outcome = Outcome("train-task", task, path, reads=reads)
    current = is_current(path, EXPERT, header, force=force)
    if current and (not rules.has_memory or _memory_matches(run.memory(task, method), header)):
        return outcome
    backbone = model.load()
    with measured(run.cost(f"train-task-{method}", task), model.counts):
        samples = training_samples(task, shares, data=data, seed=settings.seed)
        trained = _train(LoadedContext(rules, run, settings, context.options, task, samples, backbone), recipe, track)
    if rules.has_memory:
        # Before the expert, whose presence means that the stage is complete.
        write_memory(run.memory(task, method), trained.memory, header)
    facts = {"shortened": trained.truncated} if settings.train.max_length else {}
    expert = trained.expert
    write_expert(path, ExpertFile(expert.sites, expert.scale, header.with_facts(**facts), expert.gates))
    data.image_digests.save()
    steps, advice = len(trained.losses.answers), "raise --epochs, or lower --batch-size"
    warning = few_steps("the expert was trained", steps, advice=advice)
    return replace(outcome.wrote(**_summary(trained, facts)), warnings=(warning,) if warning else ())


def _summary(trained: Trained, facts: dict[str, Any]) -> dict[str, Any]:
    losses = trained.losses
    return {
        "parameters": sum(p.numel() for p in trained.expert.parameters()),
        "steps": len(losses.answers),
        "first_loss": round(losses.answers[0], 4),
        "last_loss": _mean_of_last(losses.answers),
        **facts,
        **({"last_penalty": _mean_of_last(losses.penalty)} if losses.penalty else {}),
    }


def _mean_of_last(values: Sequence[float]) -> float:
    tail = values[-10:]
    return round(sum(tail) / len(tail), 4)


def _previous_artifacts(context: TaskContext) -> list[Path]:
    """The expert that is trained further, and the method's memory of its task."""
    rules, run = context.method, context.run
    previous = rules.previous_task(context.settings.tasks, context.task)
    if previous is None:
        return []
    return [run.expert(previous, rules.name), *([run.memory(previous, rules.name)] if rules.has_memory else [])]


def _require_same_shape(context: TaskContext) -> None:
    """Refuse settings that shape a new expert where an expert of another shape is trained further."""
    rules, settings = context.method, context.settings
    previous = rules.previous_task(settings.tasks, context.task)
    made = header_of(context.run.expert(previous, rules.name), EXPERT) if previous else None
    if made is None:
        return
    before = {**made.settings, **made.settings.get("options", {})}
    now = {**rules.header_settings(settings), **{name: context.options[name] for name in rules.shaping}}
    # An imported expert records none of them.
    changed = [f"{name} {before[name]}, not {now[name]}" for name in now if before.get(name, now[name]) != now[name]]
    if changed:
        raise DmoleError(
            f"method {rules.name} trains the expert of task {previous} further, which was made with {', '.join(changed)}",
            f"use the values of the first task, or train the tasks up to {previous} again with the new ones and --force",
        )


def _memory_matches(path: Path, header: Header) -> bool:
    """Whether the memory exists that was written together with an expert of this header."""
    made = header_of(path, MEMORY)
    return made is not None and not differences(made, header)


def _train(context: LoadedContext, recipe: Recipe, track: Track) -> Trained:
    settings, run, backbone, rules, task = (
        context.settings, context.run, context.backbone, context.method, context.task,
    )  # fmt: skip
    previous = rules.previous_task(settings.tasks, task)
    generator = torch.Generator().manual_seed(seed_for(settings.seed, task, "expert"))
    expert = rules.new_expert(context, generator) if previous is None else _trainable_copy(context, previous)
    memory = read_memory(run.memory(previous, rules.name)) if previous and rules.has_memory else {}
    transfer = rules.transfer_experts(context)
    order = _order(context, recipe, transfer)
    voted = rules.voted_experts(context, order)
    truncated = set[int]()
    limit = settings.train.max_length
    encoded = encoded_batches(
        backbone,
        context.samples,
        order,
        with_answer=True,
        max_length=limit,
        workers=settings.workers,
        cache=settings.sample_cache * 2**20 if recipe.visited_again else 0,
    )
    batches = track(record_truncated(order, encoded, truncated=truncated), f"train {task} ({rules.name})", len(order))
    with (
        _attached(context, expert, [*transfer, *voted], dropout=settings.train.dropout) as routed,
        _vision_cache(context, recipe) as cache,
    ):
        # Merged experts are part of the weights and not active beside them.
        active = [() for _ in transfer] if rules.merges else transfer
        names = ([(task, *active[i], *voted[step]) for i in rows] for step, rows in enumerate(order))
        training = Training(routed, expert, memory)
        saving = activation_checkpointing(backbone) if settings.train.checkpointing else nullcontext()
        # Seeded for this task alone: dropout must not depend on what the process did before.
        with torch.random.fork_rng(devices=[]), saving:
            torch.manual_seed(seed_for(settings.seed, task, "dropout"))
            torch.empty((), dtype=torch.int64).random_()  # a data loader drew this in earlier versions
            losses = train_expert(
                backbone,
                routed,
                expert,
                _batches(context, names, order, batches),
                schedule=Schedule(len(order), recipe.settings["learning_rate"], settings.train),
                penalty=rules.penalty(context, training),
                cache=cache,
            )
        routed.dropout = 0.0
        remembered = rules.remember(context, training)
    if wrong := [name for name, tensor in remembered.items() if not bool(tensor.isfinite().all())]:
        raise DmoleError(
            f"what {rules.name} stores of {task} is not finite ({', '.join(wrong[:3])}); nothing was written",
            "lower --learning-rate, or the method's options (--set)",
        )
    return Trained(expert, remembered, losses, len(truncated))


def _order(context: LoadedContext, recipe: Recipe, transfer: Sequence[tuple[str, ...]]) -> Sequence[Sequence[int]]:
    """Sample indices of every step."""
    rows, visits = recipe.entries()
    return shuffled_batches(
        len(rows),
        recipe.batch_size,
        epochs=max(visits),
        seed=seed_for(context.settings.seed, context.task, "order"),
        lengths=Lengths(context.backbone.inputs, context.samples, with_answer=True),
        transfer=transfer,
        visits=visits,
        rows=rows,
    )


@contextmanager
def _attached(
    context: LoadedContext, expert: Expert, transfer: Sequence[tuple[str, ...]], *, dropout: float
) -> Iterator[RoutedExperts]:
    """The backbone with the new expert and the transfer experts attached, or merged where the method merges."""
    rules, backbone = context.method, context.backbone
    routed = RoutedExperts(backbone.model, backbone.modality_of, dropout=dropout)
    try:
        for name in sorted({name for names in transfer for name in names}):
            routed.add(name, load_expert(context.run.expert(name, rules.name)))
        routed.add(context.task, expert)
        if rules.merges:
            routed.merge(transfer[0])
        yield routed
    finally:
        routed.close()


@contextmanager
def _vision_cache(context: LoadedContext, recipe: Recipe) -> Iterator[VisionFeatureCache]:
    """The cache of frozen vision features; of size 0 where no sample is visited twice."""
    limit = context.settings.vision_cache * 2**20 if recipe.visited_again else 0
    cache = VisionFeatureCache(context.backbone, folder=context.run.root / "cache", limit=limit)
    try:
        yield cache
    finally:
        cache.close()


def _batches(
    context: LoadedContext,
    active: Iterable[Sequence[tuple[str, ...]]],
    order: Sequence[Sequence[int]],
    encoded: Iterable[list[Encoded]],
) -> Iterator[Batch]:
    for rows, names, batch in zip(order, active, encoded, strict=True):
        yield Batch([context.samples[i].sample_id for i in rows], names, batch)


def _trainable_copy(context: LoadedContext, task: str) -> Expert:
    """The expert of an earlier task, to be trained further."""
    file = read_expert(context.run.expert(task, context.method.name))
    device = context.backbone.device

    def copied(matrix: torch.Tensor) -> torch.Tensor:
        return matrix.to(device, copy=True).requires_grad_()

    sites = {site: (copied(a), copied(b)) for site, (a, b) in file.sites.items()}
    gates = {site: copied(gate) for site, gate in file.gates.items()}
    return Expert(sites, file.scale, trainable=True, gates=gates)
