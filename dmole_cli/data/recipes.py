"""How many training steps a recipe makes of a number of rows, and a recipe that makes enough of them."""

from __future__ import annotations

from typing import Protocol

BATCH_SIZES = (4, 32)  # smallest and largest batch of a guessed recipe
LEAST_STEPS = 80  # steps that a guessed recipe makes at least, as many as those of the built-in tasks
FEW_STEPS = 20  # below it, a warm-up and the decay of the learning rate leave next to no step at the peak


class Recipe(Protocol):
    """The part of a card's recipe that decides the number of steps."""

    epochs: int
    batch_size: int
    repeats: int


def steps_of(recipe: Recipe, rows: int) -> int:
    """Number of training steps over `rows` samples."""
    return recipe.epochs * -(-rows * recipe.repeats // recipe.batch_size)


def recipe_of(rows: int) -> tuple[int, int]:
    """Batch size and epochs for a task of this many training rows, which make at least `LEAST_STEPS` steps."""
    smallest, largest = BATCH_SIZES
    batch_size = max(smallest, min(largest, rows // LEAST_STEPS * 4))
    return batch_size, max(1, -(-LEAST_STEPS // max(1, -(-rows // batch_size))))


def few_steps(
    trained: str, steps: int, *, advice: str = "increase `epochs` or reduce `batch_size` in [recipe] of its card"
) -> str:
    """A warning if training has very few steps, else an empty text.

    Args:
        trained: what is trained, with the verb.
        steps: number of training steps.
        advice: how to get more of them.
    """
    if not 0 < steps < FEW_STEPS:
        return ""
    return f"{trained} in {steps} step{'s' if steps > 1 else ''}; fewer than {FEW_STEPS} rarely suffice: {advice}"
