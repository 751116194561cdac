"""The phases of the pre-training, in order: what each of them trains, on what, for how long and at which rate."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Phase:
    """A phase of training.

    Attributes:
        kind: `vision` (patch loss, the vision tower alone) or `joint` (answers and patches, the whole model).
        steps: number of optimizer steps.
        rate: peak learning rate.
        scenes: batch size as (first step, scenes per batch), ascending.
        decay_from: share of the steps after which the rate decays linearly to zero.
        emphasis: additional weight of shapes and characters in the patch loss.
        regular: share of scenes on a regular grid, see `draw_scene`.
        patch_weight: weight of the patch loss in a joint phase.
        weights: weights of question families that differ from `FAMILIES`.
        blur: standard deviation of the soft targets of boxes in coordinate steps, 0 for hard targets.
    """

    kind: str
    steps: int
    rate: float
    scenes: tuple[tuple[int, int], ...]
    decay_from: float = 1.0
    emphasis: float = 0.0
    regular: float = 0.0
    patch_weight: float = 0.15
    weights: tuple[tuple[str, float], ...] = ()
    blur: float = 0.0

    def batch(self, step: int) -> int:
        """Number of scenes in the batch of a step."""
        return [count for first, count in self.scenes if step >= first][-1]

    def rate_at(self, step: int) -> float:
        """Learning rate of a step: warm-up over 50 steps, constant, then linear to zero."""
        knee = int(self.steps * self.decay_from)
        fall = 1.0 if step < knee else (self.steps - step) / max(1, self.steps - knee)
        return self.rate * min(1.0, (step + 1) / 50) * fall


PHASES = {
    1: Phase("vision", 700, 2e-3, ((0, 128),)),
    2: Phase("joint", 1250, 2e-3, ((0, 48), (1000, 32))),
    3: Phase("vision", 750, 1e-3, ((0, 128),), emphasis=1.0),
    4: Phase("joint", 500, 1e-3, ((0, 32),), emphasis=1.0),
    5: Phase("vision", 300, 1e-3, ((0, 128),), emphasis=1.0, regular=0.6),
    6: Phase("joint", 900, 1.5e-3, ((0, 32),), decay_from=0.6, emphasis=1.0, regular=0.6, patch_weight=0.4),
    7: Phase("joint", 1400, 1.5e-3, ((0, 32),), decay_from=0.5, emphasis=1.0, regular=0.5, patch_weight=0.3),
    8: Phase("joint", 250, 1.5e-3, ((0, 32),), emphasis=1.0, regular=0.4, patch_weight=0.3),
    9: Phase(
        "joint", 4000, 1.5e-3, ((0, 32),), decay_from=0.5, emphasis=1.0, regular=0.3, patch_weight=0.3, blur=1.5,
        weights=(("box", 3.5), ("at_box", 1.0), ("read", 2.6), ("options", 1.8), ("presence", 1.4), ("color", 1.4), ("background", 0.2)),
    ),
}  # fmt: skip
