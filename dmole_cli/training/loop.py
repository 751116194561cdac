"""The training loop: every method trains its expert here, on the same batches and the same schedule."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from dmole_cli.artifacts.training_log import StepFigures
from dmole_cli.backbones.backbone import Backbone, Encoded
from dmole_cli.backbones.vision_cache import VisionFeatureCache
from dmole_cli.data.seeds import seed_for
from dmole_cli.errors import DmoleError
from dmole_cli.experts.expert import Expert
from dmole_cli.experts.flat import FlatExpert
from dmole_cli.experts.routed import RoutedExperts
from dmole_cli.experts.samples import batch_samples
from dmole_cli.processes import world
from dmole_cli.training.captured import captured_steps
from dmole_cli.training.gradients import StepGradient
from dmole_cli.training.reads import PendingReads
from dmole_cli.training.schedule import Schedule


@dataclass(frozen=True)
class Batch:
    """A micro-batch: samples of one training step that pass through the model together; by default all of the step.

    Attributes:
        sample_ids: of the samples, for messages.
        active: names of each sample's active experts.
        encoded: the samples.
        truncated: number of samples whose question was truncated, and that no earlier step has visited.
        collated: result of `Backbone.collate`, where that was computed ahead.
    """

    sample_ids: Sequence[str]
    active: Sequence[Sequence[str]]
    encoded: list[Encoded]
    truncated: int = 0
    collated: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]] | None = None


@dataclass(frozen=True)
class Step:
    """A micro-batch after its forward pass: the input of a penalty.

    The penalty of a step is the mean of those of its micro-batches, weighted by answer tokens: a penalty that is a mean over
    answer tokens, or that does not depend on the samples, has the same value for every division into micro-batches.

    Attributes:
        inputs: the inputs of the model.
        rows: modality -> sample index of each row of that tower's tensors.
        logits: at the positions that predict an answer token [answer tokens, vocabulary].
        samples: number of samples.
    """

    inputs: Mapping[str, Any]
    rows: Mapping[str, torch.Tensor]
    logits: torch.Tensor
    samples: int


Penalty = Callable[[Step], torch.Tensor]


class Observer:
    """What accompanies a training run; this one does nothing."""

    def begin(self, trainer: Trainer) -> None:
        """Called before the first step; may restore the state of an interrupted run."""

    def steps(self, trainer: Trainer) -> Iterable[int]:
        """The steps that are left, in order; shows progress."""
        return range(trainer.step, trainer.schedule.steps)

    def after_step(self, trainer: Trainer, figures: StepFigures) -> None:
        """Called for every step once its figures are known; on CUDA the next step has been launched by then."""


class Trainer:
    """Trains one expert in place; nothing else changes.

    Args:
        backbone: frozen.
        routed: the experts attached to it: the one that trains, and frozen transfer experts.
        expert: the one that trains.
        schedule: steps, learning rate, weight decay and clipping.
        penalty: of the method, added to the loss of every step.
        cache: vision features of batches without an active expert in the vision encoder.

    Attributes:
        flat: the expert's matrices in one tensor per tower.
        figures: of the steps so far; on CUDA without those of the last one, which the device may still compute.
        optimizer: AdamW over the expert's parameters.
        scaler: of the loss, in float16.
    """

    def __init__(
        self,
        backbone: Backbone,
        routed: RoutedExperts,
        expert: Expert,
        *,
        schedule: Schedule,
        penalty: Penalty | None = None,
        cache: VisionFeatureCache | None = None,
    ) -> None:
        self.backbone, self.routed, self.schedule, self.penalty, self.cache = backbone, routed, schedule, penalty, cache
        towers = {site: backbone.modality_of(site) for site in expert.sites}
        self.flat = FlatExpert(expert, towers, backbone.compute_dtype)
        # Gradients may underflow in float16, so the loss is scaled and the gradients are scaled back before the step.
        half = backbone.compute_dtype == torch.float16
        self.scaler = torch.amp.GradScaler(backbone.device.type, init_scale=backbone.loss_scale, enabled=half)
        self.optimizer = torch.optim.AdamW(
            [piece.values for piece in self.flat.pieces],
            lr=schedule.learning_rate,
            weight_decay=schedule.settings.weight_decay,
            fused=backbone.device.type == "cuda" or None,  # one kernel for all of them
        )
        self.figures: list[StepFigures] = []
        self.captured = captured_steps(backbone, routed, self.flat) if schedule.graphs else None
        self._reads = PendingReads(backbone.device, late=not half)
        self._told = 0  # steps that the observer knows of
        self._ended = time.perf_counter()  # of the last step

    @property
    def step(self) -> int:
        """Number of steps so far."""
        return len(self.figures) + len(self._reads)

    def run(self, batches: Iterable[Batch], observer: Observer) -> None:
        """Train until the end of the schedule.

        Args:
            batches: this process's micro-batches of all steps that are left.
            observer: accompanies the run.

        Raises:
            DmoleError: a loss or its gradient is not finite; the message names the samples. Or the expert is not finite after the
                last step.
        """
        source = iter(batches)
        self._ended, self._told = time.perf_counter(), len(self.figures)
        for _ in observer.steps(self):
            self._train_step(source)
            self._tell(observer)
        self.settle()
        self._tell(observer)
        # The losses do not show what the last step did.
        finite = [piece.values.isfinite().all().to(self.backbone.device) for piece in self.flat.pieces]
        if not torch.stack(finite).all():
            raise _diverged(self.schedule)

    def settle(self) -> None:
        """Wait for all steps, and check and keep their figures.

        Raises:
            DmoleError: a loss or its gradient is not finite.
        """
        for read in self._reads.take(0):
            self._keep(*read)

    def _tell(self, observer: Observer) -> None:
        """Call the observer for every step whose figures are new."""
        while self._told < len(self.figures):
            self._told += 1
            observer.after_step(self, self.figures[self._told - 1])

    def _train_step(self, source: Iterator[Batch]) -> None:
        step, rate = self.step, self.schedule.learning_rate_at(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        gradient, ids = self._gradient(source)
        figures = gradient.finish(self.optimizer)
        self.scaler.unscale_(self.optimizer)
        # Over the matrices, whose norms do not depend on the number of threads, as that of one long tensor would.
        norm = torch.nn.utils.get_total_norm(list(self.flat.matrix_gradients().values())).to(figures.device)
        values = [piece.values for piece in self.flat.pieces]
        torch.nn.utils.clip_grads_with_norm_(values, self.schedule.settings.clip, norm)
        if self.scaler.is_enabled():
            self._check(step, ids, [*figures[:2].tolist(), norm.item()])
        try:
            self.scaler.step(self.optimizer)
        except RuntimeError as error:
            if "overflow" not in str(error):
                raise
            raise _diverged(self.schedule) from error
        self.scaler.update()
        self._reads.add(torch.cat([figures, norm[None]]), (step, rate, ids))
        for read in self._reads.take(1):
            self._keep(*read)

    def _keep(self, values: Sequence[float], about: tuple[int, float, list[str]]) -> None:
        """Check and keep the figures of a step."""
        step, rate, ids = about
        loss, penalty, answers, tokens, truncated, length = values
        if not self.scaler.is_enabled():
            self._check(step, ids, [loss, penalty, length])
        before, self._ended = self._ended, time.perf_counter()
        seconds = self._ended - before
        counts = {"answers": int(answers), "truncated": int(truncated)}
        self.figures.append(StepFigures(step + 1, loss, penalty, rate, length, int(tokens), seconds, **counts))

    def _check(self, step: int, ids: Sequence[str], values: Sequence[float]) -> None:
        """Refuse a loss, penalty or gradient norm that is not finite."""
        loss, penalty, length = values
        if not math.isfinite(loss + penalty):
            raise _not_finite(step, loss + penalty, ids)
        # The scaler halves a scale that was too large and skips the step; an infinite gradient at a scale below 1 indicates
        # divergence.
        if not math.isfinite(length) and (not self.scaler.is_enabled() or self.scaler.get_scale() < 1):
            raise _not_finite(step, length, ids, what="gradient norm")

    def _gradient(self, source: Iterator[Batch]) -> tuple[StepGradient, list[str]]:
        """The gradients of a step's micro-batches, and the samples of those that this process has computed."""
        count, ids = self.schedule.count(self.step), list[str]()
        gradient = StepGradient(self.flat, count)
        self.optimizer.zero_grad(set_to_none=True)
        for first in range(0, count, world().size):
            index, figures = first + world().rank, None
            if index < count:
                batch = next(source)
                ids += batch.sample_ids
                if self.schedule.divided and self.routed.dropout:
                    torch.manual_seed(seed_for(self.schedule.seed, "dropout", self.step, index))
                figures = self.forward_and_backward(batch)
            gradient.add(figures)
        return gradient, ids

    def forward_and_backward(self, batch: Batch) -> torch.Tensor:
        """Compute the gradient of a micro-batch (`flat.gradient`); its figures [gradients.FIGURES], detached.

        A graph that outlived its step would fragment the memory of the next one.
        """
        found = None
        try:
            found = self._losses(batch)
        except torch.OutOfMemoryError:
            # The memory of captured graphs may be what is missing.
            if self.captured is None or not self.captured.release():
                raise
        # After the handler, because its exception keeps the tensors of the failed attempt.
        losses, answers = found or self._losses(batch)
        tokens = sum(len(sample.tokens) for sample in batch.encoded)
        counts = self.backbone.to_device(torch.tensor([answers, tokens, batch.truncated]))
        return torch.cat([losses, counts])

    def _losses(self, batch: Batch) -> tuple[torch.Tensor, int]:
        """Compute the gradient of a micro-batch; its cross-entropy and penalty [2], and the number of its answer tokens."""
        backbone = self.backbone
        inputs, rows = batch.collated or backbone.collate(
            batch.encoded, left=False, few_lengths=self.captured is not None
        )
        samples = batch_samples(backbone, batch.encoded, inputs)
        place = {"device": backbone.device, "dtype": backbone.compute_dtype}
        routes: dict[str, Any] = {"rows": rows, "samples": samples, **place}
        cached = self.cache is not None and not self.routed.has_vision_expert(batch.active)
        with self.flat.collecting():
            if self.captured is not None and not cached and self.penalty is None and not self.scaler.is_enabled():
                found = self.captured.compute(inputs, batch.active, routes)
                if found is not None:
                    loss, answers = found
                    return torch.stack([loss, torch.zeros_like(loss)]), answers
            if cached and self.cache is not None:
                inputs = self.cache.replace(inputs, batch.encoded)
            with self.routed.route(batch.active, **routes):
                logits, targets = backbone.answer_logits(inputs)
                loss = F.cross_entropy(logits.float(), targets)
                extra = torch.zeros_like(loss)
                if self.penalty is not None:
                    extra = self.penalty(Step(inputs, rows, logits, len(batch.encoded)))
                # Inside of the routed block, because checkpointed activations are recomputed in the backward pass.
                self.scaler.scale(loss + extra).backward()
        return torch.stack([loss.detach(), extra.detach()]), len(targets)


def train_expert(
    backbone: Backbone,
    routed: RoutedExperts,
    expert: Expert,
    batches: Iterable[Batch],
    *,
    schedule: Schedule,
    penalty: Penalty | None = None,
    cache: VisionFeatureCache | None = None,
    observer: Observer | None = None,
) -> list[StepFigures]:
    """Train one expert in place; returns the figures of every step. Arguments and errors are those of `Trainer`."""
    trainer = Trainer(backbone, routed, expert, schedule=schedule, penalty=penalty, cache=cache)
    observer = observer or Observer()
    observer.begin(trainer)
    trainer.run(batches, observer)
    return trainer.figures


def _diverged(schedule: Schedule) -> DmoleError:
    return DmoleError(
        f"the expert is not finite after training with a learning rate of {schedule.learning_rate:g}; nothing was written",
        "lower it (--learning-rate, or learning_rate of the card)",
    )


def _not_finite(step: int, value: float, own: Sequence[str], *, what: str = "loss") -> DmoleError:
    # Every process has found the same values and comes here.
    ids = [name for names in world().collect(list(own)) for name in names]
    shown = ", ".join(ids[:8]) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
    return DmoleError(
        f"the {what} of step {step + 1} is {value}; nothing was written. Batch: {shown}",
        "check these samples with `dmole tasks check`, or lower --learning-rate",
    )
