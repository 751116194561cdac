"""Steps and learning rates of a training run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dmole_cli.settings.model import TrainSettings


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
        graphs: on CUDA, capture forward and backward passes as graphs (captured.py).
    """

    steps: int
    learning_rate: float
    settings: TrainSettings
    micro_batches: Sequence[int] = ()
    seed: int = 0
    graphs: bool = True

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


def learning_rate_factor(step: int, steps: int, warmup: float) -> float:
    """Factor on the peak learning rate; the warm-up has at least one step, so that no step has a learning rate of 0."""
    rising = max(1, round(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))
