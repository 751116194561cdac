"""The training loop: every method trains its expert here, on the same batches and the same schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional as F

from dmole_cli.backbones.backbone import Backbone, Encoded
from dmole_cli.backbones.vision_cache import VisionFeatureCache
from dmole_cli.errors import DmoleError
from dmole_cli.experts.expert import Expert
from dmole_cli.experts.routed import RoutedExperts
from dmole_cli.settings.model import TrainSettings


@dataclass(frozen=True)
class Batch:
    """The samples of one training step.

    Attributes:
        sample_ids: of the samples, for messages.
        active: names of each sample's active experts.
        encoded: the samples.
    """

    sample_ids: Sequence[str]
    active: Sequence[Sequence[str]]
    encoded: list[Encoded]


@dataclass(frozen=True)
class Schedule:
    """Steps and learning rate of a training run.

    Attributes:
        steps: number of batches.
        learning_rate: peak.
        settings: weight decay, warm-up and clipping.
    """

    steps: int
    learning_rate: float
    settings: TrainSettings

    def learning_rate_at(self, step: int) -> float:
        """Linear warm-up over the first `warmup` share of the steps, then a cosine to zero; `step` counts from 0."""
        return self.learning_rate * learning_rate_factor(step, self.steps, self.settings.warmup)


@dataclass(frozen=True)
class Step:
    """One training step after its forward pass: the input of a penalty.

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


@dataclass
class Losses:
    """Both terms of the loss per step: the cross-entropy of the answers, and the penalty of methods that have one."""

    answers: list[float] = field(default_factory=list)
    penalty: list[float] = field(default_factory=list)


def learning_rate_factor(step: int, steps: int, warmup: float) -> float:
    """Factor on the peak learning rate; the warm-up has at least one step, so that no step has a learning rate of 0."""
    rising = max(1, round(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def train_expert(
    backbone: Backbone,
    routed: RoutedExperts,
    expert: Expert,
    batches: Iterable[Batch],
    *,
    schedule: Schedule,
    penalty: Penalty | None = None,
    cache: VisionFeatureCache | None = None,
) -> Losses:
    """Train one expert in place; nothing else changes.

    Args:
        backbone: frozen.
        routed: the experts attached to it: the one that trains, and frozen transfer experts.
        expert: the one that trains.
        batches: `schedule.steps` of them.
        schedule: learning rate, weight decay and clipping.
        penalty: of the method, added to the loss of every step.
        cache: vision features of batches without an active expert in the vision encoder.

    Raises:
        DmoleError: a loss or its gradient is not finite; the message names the samples of the batch. Or the expert is not finite
            after the last step.
    """
    parameters = list(expert.parameters())
    # Gradients may underflow in float16, so the loss is scaled and the gradients are scaled back before the step.
    half = backbone.compute_dtype == torch.float16
    scaler = torch.amp.GradScaler(backbone.device.type, init_scale=backbone.loss_scale, enabled=half)
    optimizer = torch.optim.AdamW(parameters, lr=schedule.learning_rate, weight_decay=schedule.settings.weight_decay)
    losses = Losses()
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = schedule.learning_rate_at(step)
        optimizer.zero_grad(set_to_none=True)
        loss, extra = _forward_and_backward(backbone, routed, batch, scaler, penalty=penalty, cache=cache)
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(parameters, schedule.settings.clip)
        # Read together: each read of a number waits for the device.
        value, added, length = torch.stack([loss, extra, norm.to(loss.device)]).tolist()
        if not math.isfinite(value + added):
            raise _not_finite(step, value + added, batch.sample_ids)
        # The scaler halves a scale that was too large and skips the step; an infinite gradient at a scale below 1 indicates
        # divergence.
        if not math.isfinite(length) and (not scaler.is_enabled() or scaler.get_scale() < 1):
            raise _not_finite(step, length, batch.sample_ids, what="gradient norm")
        try:
            scaler.step(optimizer)
        except RuntimeError as error:
            if "overflow" not in str(error):
                raise
            raise _diverged(schedule) from error
        scaler.update()
        losses.answers.append(value)
        if penalty is not None:
            losses.penalty.append(added)
    # The losses do not show what the last step did.
    if not torch.stack([parameter.isfinite().all().to(backbone.device) for parameter in parameters]).all():
        raise _diverged(schedule)
    return losses


def _forward_and_backward(
    backbone: Backbone,
    routed: RoutedExperts,
    batch: Batch,
    scaler: torch.amp.GradScaler,
    *,
    penalty: Penalty | None,
    cache: VisionFeatureCache | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both terms of the loss, detached: a graph that outlived its step would fragment the memory of the next one."""
    inputs, rows = backbone.collate(batch.encoded, left=False)
    if cache is not None and not routed.has_vision_expert(batch.active):
        inputs = cache.replace(inputs, batch.encoded)
    with routed.route(batch.active, rows=rows, device=backbone.device, dtype=backbone.compute_dtype):
        logits, answers = backbone.answer_logits(inputs)
        loss = F.cross_entropy(logits.float(), answers)
        extra = torch.zeros_like(loss)
        if penalty is not None:
            extra = penalty(Step(inputs, rows, logits, len(batch.encoded)))
        # Inside of the routed block, because checkpointed activations are recomputed in the backward pass.
        scaler.scale(loss + extra).backward()
    return loss.detach(), extra.detach()


def _diverged(schedule: Schedule) -> DmoleError:
    return DmoleError(
        f"the expert is not finite after training with a learning rate of {schedule.learning_rate:g}; nothing was written",
        "lower it (--learning-rate, or learning_rate of the card)",
    )


def _not_finite(step: int, value: float, ids: Sequence[str], *, what: str = "loss") -> DmoleError:
    shown = ", ".join(ids[:8]) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
    return DmoleError(
        f"the {what} of step {step + 1} is {value}; nothing was written. Batch: {shown}",
        "check these samples with `dmole tasks check`, or lower --learning-rate",
    )
