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
from dmole_cli.experts.routed import RoutedExperts
from dmole_cli.processes import world
from dmole_cli.settings.model import TrainSettings
from dmole_cli.training.gradients import StepGradient


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
class Schedule:
    """Steps and learning rate of a training run.

    Attributes:
        steps: number of steps.
        learning_rate: peak.
        settings: weight decay, warm-up and clipping.
        micro_batches: number of micro-batches of each step; empty for one in each.
        seed: of the dropout masks of micro-batches, where a step has several: they must not depend on which process computes
            them.
    """

    steps: int
    learning_rate: float
    settings: TrainSettings
    micro_batches: Sequence[int] = ()
    seed: int = 0

    @property
    def divided(self) -> bool:
        """Whether any step has several micro-batches."""
        return any(count > 1 for count in self.micro_batches)

    def count(self, step: int) -> int:
        """Number of micro-batches of a step."""
        return self.micro_batches[step] if self.micro_batches else 1

    def learning_rate_at(self, step: int) -> float:
        """Linear warm-up over the first `warmup` share of the steps, then a cosine to zero; `step` counts from 0."""
        return self.learning_rate * learning_rate_factor(step, self.steps, self.settings.warmup)


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


def learning_rate_factor(step: int, steps: int, warmup: float) -> float:
    """Factor on the peak learning rate; the warm-up has at least one step, so that no step has a learning rate of 0."""
    rising = max(1, round(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


class Observer:
    """What accompanies a training run; this one does nothing."""

    def begin(self, trainer: Trainer) -> None:
        """Called before the first step; may restore the state of an interrupted run."""

    def steps(self, trainer: Trainer) -> Iterable[int]:
        """The steps that are left, in order; shows progress."""
        return range(trainer.step, trainer.schedule.steps)

    def after_step(self, trainer: Trainer) -> None:
        """Called after every step."""


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
        figures: of every step so far.
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
        self.parameters = list(expert.parameters())
        # Gradients may underflow in float16, so the loss is scaled and the gradients are scaled back before the step.
        half = backbone.compute_dtype == torch.float16
        self.scaler = torch.amp.GradScaler(backbone.device.type, init_scale=backbone.loss_scale, enabled=half)
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=schedule.learning_rate, weight_decay=schedule.settings.weight_decay
        )
        self.figures: list[StepFigures] = []
        self._ended = time.perf_counter()  # of the last step

    @property
    def step(self) -> int:
        """Number of steps so far."""
        return len(self.figures)

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
        self._ended = time.perf_counter()
        for _ in observer.steps(self):
            self._train_step(source)
            observer.after_step(self)
        # The losses do not show what the last step did.
        if not torch.stack(
            [parameter.isfinite().all().to(self.backbone.device) for parameter in self.parameters]
        ).all():
            raise _diverged(self.schedule)

    def _train_step(self, source: Iterator[Batch]) -> None:
        step, rate = self.step, self.schedule.learning_rate_at(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        gradient, ids = self._gradient(source)
        figures = gradient.finish()
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.schedule.settings.clip)
        # Read together: each read of a number waits for the device.
        *found, length = torch.cat([figures, norm.to(figures.device)[None]]).tolist()
        loss, penalty, answers, tokens, truncated = found
        if not math.isfinite(loss + penalty):
            raise _not_finite(step, loss + penalty, ids)
        # The scaler halves a scale that was too large and skips the step; an infinite gradient at a scale below 1 indicates
        # divergence.
        if not math.isfinite(length) and (not self.scaler.is_enabled() or self.scaler.get_scale() < 1):
            raise _not_finite(step, length, ids, what="gradient norm")
        try:
            self.scaler.step(self.optimizer)
        except RuntimeError as error:
            if "overflow" not in str(error):
                raise
            raise _diverged(self.schedule) from error
        self.scaler.update()
        before, self._ended = self._ended, time.perf_counter()
        seconds = self._ended - before
        self.figures.append(
            StepFigures(
                step + 1,
                loss,
                penalty,
                rate,
                length,
                int(tokens),
                seconds,
                answers=int(answers),
                truncated=int(truncated),
            )
        )

    def _gradient(self, source: Iterator[Batch]) -> tuple[StepGradient, list[str]]:
        """The gradients of a step's micro-batches, and the samples of those that this process has computed."""
        count, ids = self.schedule.count(self.step), list[str]()
        gradient = StepGradient(self.parameters, count)
        for first in range(0, count, world().size):
            index, figures = first + world().rank, None
            self.optimizer.zero_grad(set_to_none=True)
            if index < count:
                batch = next(source)
                ids += batch.sample_ids
                if self.schedule.divided and self.routed.dropout:
                    torch.manual_seed(seed_for(self.schedule.seed, "dropout", self.step, index))
                figures = self.forward_and_backward(batch)
            gradient.add(figures)
        return gradient, ids

    def forward_and_backward(self, batch: Batch) -> torch.Tensor:
        """Add the gradient of a micro-batch to the parameters; its figures [gradients.FIGURES], detached.

        A graph that outlived its step would fragment the memory of the next one.
        """
        backbone = self.backbone
        inputs, rows = batch.collated or backbone.collate(batch.encoded, left=False)
        if self.cache is not None and not self.routed.has_vision_expert(batch.active):
            inputs = self.cache.replace(inputs, batch.encoded)
        with self.routed.route(batch.active, rows=rows, device=backbone.device, dtype=backbone.compute_dtype):
            logits, answers = backbone.answer_logits(inputs)
            loss = F.cross_entropy(logits.float(), answers)
            extra = torch.zeros_like(loss)
            if self.penalty is not None:
                extra = self.penalty(Step(inputs, rows, logits, len(batch.encoded)))
            # Inside of the routed block, because checkpointed activations are recomputed in the backward pass.
            self.scaler.scale(loss + extra).backward()
        tokens = sum(len(sample.tokens) for sample in batch.encoded)
        counts = [loss.new_full((), count) for count in (len(answers), tokens, batch.truncated)]
        return torch.stack([loss.detach(), extra.detach(), *counts])


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
