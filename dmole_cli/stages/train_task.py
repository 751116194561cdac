"""Stage `train-task`: train one task's expert, and nothing else (D-MoLE, arXiv 2506.11672, section 4.3, and baselines)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dmole_cli.artifacts.bundle import is_from_bundle
from dmole_cli.artifacts.costs import measured
from dmole_cli.artifacts.exclusion import exclusive
from dmole_cli.artifacts.expert import ExpertFile, is_imported, write_expert
from dmole_cli.artifacts.headers import header_of, is_current
from dmole_cli.artifacts.kinds import D_MOLE, EXPERT, MEMORY
from dmole_cli.artifacts.memory import read_memory, write_memory
from dmole_cli.artifacts.outcome import Outcome
from dmole_cli.artifacts.provenance import Header, differences, versions
from dmole_cli.artifacts.run import Run
from dmole_cli.artifacts.staleness import check_inputs
from dmole_cli.artifacts.training_log import StepFigures, write_training_log
from dmole_cli.backbones.checkpointing import activation_checkpointing
from dmole_cli.backbones.lazy_model import LazyModel
from dmole_cli.data.recipes import few_steps
from dmole_cli.data.seeds import seed_for
from dmole_cli.data.tasks import Tasks
from dmole_cli.errors import DmoleError
from dmole_cli.experts.expert import Expert
from dmole_cli.methods._previous import previous_artifacts, require_same_shape, trainable_copy
from dmole_cli.methods._session import attached, training_order, vision_cache
from dmole_cli.methods._stream import require_stream, with_removed_inputs
from dmole_cli.methods.base import LoadedContext, TaskContext, Training, load_method
from dmole_cli.processes import world
from dmole_cli.progress import Track, quiet
from dmole_cli.routing.features import routing_features
from dmole_cli.settings.model import Settings
from dmole_cli.training.batches import Active, MicroBatches, counts_of, micro_batches
from dmole_cli.training.checkpoints import Checkpoints
from dmole_cli.training.following import Followed, open_tracker
from dmole_cli.training.loop import Schedule, Trainer, train_expert
from dmole_cli.training.micro_batches import micro_batch_size
from dmole_cli.training.order import ShuffledBatches, transfer_shares
from dmole_cli.training.samples import Recipe, recipe_for, row_counts, training_samples


@dataclass(frozen=True)
class Trained:
    """Result of a training run.

    Attributes:
        expert: the trained expert.
        memory: tensors that the method stores for the next task.
        figures: of every step.
        micro_batch: largest number of samples that passed through the model together; 0 where no step was divided.
        resumed: number of steps that an interrupted run had done.
        transfer_shares: see `transfer_shares`; None for methods without routers.
    """

    expert: Expert
    memory: dict[str, torch.Tensor]
    figures: list[StepFigures]
    micro_batch: int
    resumed: int
    transfer_shares: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Plan:
    """A training run before the backbone is loaded.

    Attributes:
        context: method, task and settings.
        shares: task -> share of its training split that trains.
        recipe: how the samples are visited.
        header: of the expert.
        reads: what is read, for the outcome.
    """

    context: TaskContext
    shares: Mapping[str, float]
    recipe: Recipe
    header: Header
    reads: tuple[str, ...]

    @property
    def path(self) -> Path:
        """The expert."""
        return self.context.run.expert(self.context.task, self.context.method.name)

    @property
    def memory(self) -> Path:
        """What the method stores beside it."""
        return self.context.run.memory(self.context.task, self.context.method.name)

    def is_done(self, *, force: bool) -> bool:
        """Whether the expert, and the method's memory of it, exist and are current; as the first process finds."""

        def done() -> bool:
            wanted = with_removed_inputs(self.header, self.context.settings, self.context.run, self.path)
            current = is_current(self.path, EXPERT, wanted, force=force)
            return current and (not self.context.method.has_memory or _memory_matches(self.memory, self.header))

        return world().from_first(done)


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

    A run that was interrupted goes on from its last checkpoint. The processes of a command share the micro-batches of a step.

    Raises:
        DmoleError: an input is missing, stale or another backbone's; the data cannot be read; the loss is not finite.
    """
    rules = load_method(method)
    settings.position(task)
    path = run.expert(task, method)
    made = world().from_first(lambda: None if force else header_of(path, EXPERT))
    if made is not None and (is_imported(made) or is_from_bundle(run, path)):
        # No setting of this run has shaped an imported expert, so none makes it stale; only --force trains another in its place.
        check_inputs(run, [path], fingerprint=model.fingerprint, data=data.current_digest)
        return Outcome("train-task", task, path, facts={"imported": True})
    plan = _plan(TaskContext(rules, run, settings, rules.option_values(settings), task), data, model)
    outcome = Outcome("train-task", task, path, reads=plan.reads)
    if plan.is_done(force=force):
        return outcome
    with exclusive(run.root / "cache" / f"train-{method}-{task}.lock") as waited:
        if waited and plan.is_done(force=False):
            return outcome
        trained = _train(plan, data, model, track)
        facts = _write(plan, trained)
    data.image_digests.save()
    steps, advice = len(trained.figures), "raise --epochs, or lower --batch-size"
    warning = few_steps("the expert was trained", steps, advice=advice)
    return replace(outcome.wrote(**_summary(trained, facts)), warnings=(warning,) if warning else ())


def _plan(context: TaskContext, data: Tasks, model: LazyModel) -> Plan:
    """Check everything that a training run reads, and state what its expert will be made from."""
    rules, run, settings, task = context.method, context.run, context.settings, context.task
    trained_tasks = rules.trained_tasks(settings.tasks)
    if task not in trained_tasks:
        raise DmoleError(
            f"method {rules.name} trains nothing at task {task}",
            f"tasks at which it trains: {', '.join(trained_tasks) or 'none'}",
        )
    shares = rules.data_shares(settings.tasks, task, context.options)
    inputs = data.inputs(*((name, "train") for name in shares))
    needed = [*rules.inputs(context), *previous_artifacts(context)]
    if rules.protocol == "sequential":
        require_stream(rules, settings, run, settings.earlier(task))
    require_same_shape(context)
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
            "method": rules.name,
            "precision": model.precision,
            **recipe.settings,
            **rules.header_settings(settings),
            "options": dict(context.options),
        },
        inputs={**inputs, **check_inputs(run, needed, fingerprint=model.fingerprint, data=data.current_digest)},
        versions=versions("torch", "transformers"),
    )
    reads = (*(f"task {name} (train)" for name in shares), f"backbone {model.name}", *map(str, needed))
    return Plan(context, shares, recipe, header, reads)


def _write(plan: Plan, trained: Trained) -> dict[str, Any]:
    """Write what was trained, and delete the checkpoint; returns the facts of the expert."""
    context, expert = plan.context, trained.expert
    run, task, method = context.run, context.task, context.method.name
    if context.method.has_memory:
        # Before the expert, whose presence means that the stage is complete.
        write_memory(plan.memory, trained.memory, plan.header)
    write_training_log(run.training_log(task, method), trained.figures, plan.header)
    facts = {"shortened": sum(row.truncated for row in trained.figures)} if context.settings.train.max_length else {}
    facts |= {"micro_batch": trained.micro_batch} if trained.micro_batch else {}
    shares = {} if trained.transfer_shares is None else {"transfer_shares": trained.transfer_shares}
    header = plan.header.with_facts(**facts, **shares)
    write_expert(plan.path, ExpertFile(expert.sites, expert.scale, header, expert.gates, expert.buffers))
    if world().first:
        run.checkpoint(task, method).unlink(missing_ok=True)
    # The next task's training reads the expert, in every process.
    world().wait()
    return facts


def _summary(trained: Trained, facts: dict[str, Any]) -> dict[str, Any]:
    losses, penalties = ([getattr(row, name) for row in trained.figures] for name in ("loss", "penalty"))
    return {
        "parameters": sum(p.numel() for p in trained.expert.parameters()),
        "steps": len(losses),
        "first_loss": round(losses[0], 4),
        "last_loss": _mean_of_last(losses),
        **facts,
        **({"last_penalty": _mean_of_last(penalties)} if any(penalties) else {}),
        **({"resumed_after_step": trained.resumed} if trained.resumed else {}),
    }


def _mean_of_last(values: Sequence[float]) -> float:
    tail = values[-10:]
    return round(sum(tail) / len(tail), 4)


def _memory_matches(path: Path, header: Header) -> bool:
    """Whether the memory exists that was written together with an expert of this header."""
    made = header_of(path, MEMORY)
    return made is not None and not differences(made, header)


def _train(plan: Plan, data: Tasks, model: LazyModel, track: Track) -> Trained:
    rules, run, settings, task = plan.context.method, plan.context.run, plan.context.settings, plan.context.task
    backbone = model.load()
    with measured(run.cost(f"train-task-{rules.name}", task), model.counts) as cost:
        given = training_samples(task, plan.shares, data=data, seed=settings.seed)
        samples = rules.training_samples(plan.context, given, data.card(task).read_as("train"))
        if len(samples) != len(given):
            message = f"training_samples of method {rules.name} makes {len(samples)} samples of {len(given)}"
            raise DmoleError(message, "return as many samples, in the same order, from the method's training_samples")
        context = LoadedContext(rules, run, settings, plan.context.options, task, samples, backbone)
        previous = rules.previous_task(settings.tasks, task)
        generator = torch.Generator().manual_seed(seed_for(settings.seed, task, "expert"))
        expert = rules.new_expert(context, generator) if previous is None else trainable_copy(context, previous)
        memory = read_memory(run.memory(previous, rules.name)) if previous and rules.has_memory else {}
        if rules.weighted:  # `remember` reads them
            routing_features(
                task, "train", data=data, backbone=backbone, run=run, track=track, workers=settings.workers
            )
        transfer = rules.transfer_experts(context)
        order = training_order(context, plan.recipe, transfer)
        voted = rules.voted_experts(context, order)
        # Merged experts are part of the weights and not active beside them.
        beside = [() for _ in transfer] if rules.merges else transfer

        shares = transfer_shares(context.earlier, beside, plan.recipe.entries(), voted, order.sizes)

        def active(step: int, row: int) -> tuple[str, ...]:
            return (task, *beside[row], *voted[step])

        with attached(context, expert, [*transfer, *voted], dropout=settings.train.dropout) as routed:
            training = Training(routed, expert, memory)
            trained = _fit(plan, context, training, order, active, track)
            cost.add(seconds=sum(row.seconds for row in trained.figures[: trained.resumed]))
            routed.dropout = 0.0
            remembered = rules.remember(context, training)
    if wrong := [name for name, tensor in remembered.items() if not bool(tensor.isfinite().all())]:
        raise DmoleError(
            f"what {rules.name} stores of {task} is not finite ({', '.join(wrong[:3])}); nothing was written",
            "lower --learning-rate, or the method's options (--set)",
        )
    return replace(trained, memory=remembered, transfer_shares=shares if rules.uses_routers else None)


def _fit(
    plan: Plan, context: LoadedContext, training: Training, order: ShuffledBatches, active: Active, track: Track
) -> Trained:
    """Train the expert on all steps that an interrupted run has not done."""
    rules, run, settings, task, backbone = context.method, context.run, context.settings, context.task, context.backbone
    with (
        vision_cache(context, plan.recipe) as cache,
        activation_checkpointing(backbone, random=settings.train.dropout > 0)
        if settings.train.checkpointing
        else nullcontext(),
        # Seeded for this task alone: dropout must not depend on what the process did before.
        torch.random.fork_rng(devices=[]),
    ):
        rate, seed = plan.recipe.settings["learning_rate"], seed_for(settings.seed, task, "dropout")
        penalty = rules.penalty(context, training)
        size = micro_batch_size(
            settings.train.micro_batch, context.samples, order.sizes,
            trainer=Trainer(
                backbone, training.routed, training.expert,
                schedule=Schedule(1, rate, settings.train, graphs=False), penalty=penalty,
            ),
            active=active, remembered=run.root / "cache" / "micro_batches.json", settings=settings.train,
        )  # fmt: skip
        schedule = Schedule(len(order), rate, settings.train, counts_of(order.sizes, size), seed, settings.cuda_graphs)
        # Bytes depend on the division, too.
        header = replace(plan.header, settings={**plan.header.settings, "micro_batch": size if schedule.divided else 0})
        checkpoints = Checkpoints(run.checkpoint(task, rules.name), header, every=settings.train.save_every)
        resumed, label = checkpoints.step, f"train {task} ({rules.name})"
        log, finish = open_tracker(
            settings.train.log_to,
            run.root / "training" / "logs",
            label=f"{rules.name}-{task}",
            settings=header.settings,
        )
        own = MicroBatches(order, schedule.micro_batches, size, first=resumed)
        torch.manual_seed(seed)
        torch.empty((), dtype=torch.int64).random_()  # a data loader drew this in earlier versions
        figures = train_expert(
            backbone,
            training.routed,
            training.expert,
            micro_batches(
                backbone,
                context.samples,
                order,
                own,
                active=active,
                settings=settings,
                again=plan.recipe.visited_again,
            ),
            schedule=schedule,
            penalty=penalty,
            cache=cache,
            observer=Followed(checkpoints, track, label, log=log, last=rules.has_memory),
        )
        finish()
    return Trained(training.expert, {}, figures, size if schedule.divided else 0, resumed)
