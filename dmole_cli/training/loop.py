"""The one training loop: every method trains its expert here, on the same batches and the same schedule."""

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
class Step:
    """One training step, after the forward pass.

    Attributes:
        inputs: the batch as the model got it.
        rows: modality -> sample of each row of that tower.
        logits: at the positions that predict an answer token [answer tokens, vocabulary].
        samples: in the batch.
    """

    inputs: Mapping[str, Any]
    rows: Mapping[str, torch.Tensor]
    logits: torch.Tensor
    samples: int


Penalty = Callable[[Step], torch.Tensor]


@dataclass
class Losses:
    """The two terms of the loss, per step: that on the answers, and the method's penalty where it has one."""

    answers: list[float] = field(default_factory=list)
    penalty: list[float] = field(default_factory=list)


def learning_rate_factor(step: int, steps: int, warmup: float) -> float:
    """Linear rise over the first `warmup` share of the steps, then a cosine to zero; `step` counts from 0."""
    rising = max(1, round(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def train_expert(
    backbone: Backbone,
    routed: RoutedExperts,
    expert: Expert,
    batches: Iterable[tuple[Sequence[str], Sequence[Sequence[str]], list[Encoded]]],
    *,
    steps: int,
    learning_rate: float,
    settings: TrainSettings,
    penalty: Penalty | None = None,
    seen: VisionFeatureCache | None = None,
) -> Losses:
    """Train one expert in place; nothing else changes.

    Args:
        backbone: frozen.
        routed: holds the expert, and the frozen ones that may join.
        expert: the one that trains.
        batches: (sample ids, names of each sample's active experts, encoded samples), `steps` of them.
        steps: number of batches.
        learning_rate: peak.
        settings: weight decay, warm-up, clipping.
        penalty: of the method, added to the loss of every step.
        seen: keeps what the vision tower makes of pictures, for batches without an expert in it.

    Returns:
        Both terms of the loss, per step.

    Raises:
        DmoleError: a loss or its gradient is not finite; the samples of the batch are named.
    """
    parameters = list(expert.parameters())
    # Gradients of half precision may be too small for it: they are made on a larger scale, and the step on the true one.
    half = backbone.compute_dtype == torch.float16
    scaler = torch.amp.GradScaler(backbone.device.type, init_scale=backbone.loss_scale, enabled=half)
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=settings.weight_decay)
    losses = Losses()
    for step, (ids, sets, encoded) in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * learning_rate_factor(step, steps, settings.warmup)
        inputs, rows = backbone.collate(encoded, left=False)
        if seen is not None and not has_vision_expert(backbone, routed, sets):
            inputs = seen.replace(inputs, encoded)
        with routed.route(sets, rows=rows, device=backbone.device, dtype=backbone.compute_dtype):
            logits, answers = backbone.answer_logits(inputs)
            loss = F.cross_entropy(logits.float(), answers)
            extra = torch.zeros_like(loss)
            if penalty is not None:
                extra = penalty(Step(inputs, rows, logits, len(encoded)))
            total = loss + extra
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(total).backward()
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(parameters, settings.clip)
        # Both at once: each look at a number waits for the device.
        value, added, length = torch.stack([loss.detach(), extra.detach(), norm.to(loss.device)]).tolist()
        if not math.isfinite(value + added):
            raise _not_finite(step, value + added, ids)
        # A scale that was too large is halved and the step left out; one that cannot be smaller tells of something else.
        if not math.isfinite(length) and (not scaler.is_enabled() or scaler.get_scale() < 1):
            raise _not_finite(step, length, ids, what="gradient's norm")
        scaler.step(optimizer)
        scaler.update()
        # What is left of the graph lies between the holes in memory, which the next step could not fill otherwise.
        del logits, loss, extra, total
        losses.answers.append(value)
        if penalty is not None:
            losses.penalty.append(added)
    return losses


def has_vision_expert(backbone: Backbone, routed: RoutedExperts, sets: Iterable[Iterable[str]]) -> bool:
    """Whether any of these experts sits in the vision tower."""
    names = {name for one in sets for name in one}
    return any(backbone.modality_of(site) == "vision" for name in names for site in routed.experts[name].sites)


def _not_finite(step: int, value: float, ids: Sequence[str], *, what: str = "loss") -> DmoleError:
    shown = ", ".join(ids[:8]) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
    return DmoleError(
        f"the {what} of step {step + 1} is {value}; nothing was written. Batch: {shown}",
        "look at these samples with `dmole tasks --check`, or lower --learning-rate",
    )
