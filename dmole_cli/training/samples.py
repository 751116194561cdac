"""The samples that train at a task, and the recipe that they are trained by."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import torch

from dmole_cli.data.card import TaskCard
from dmole_cli.data.sample import Picked, Sample
from dmole_cli.data.seeds import seed_for
from dmole_cli.data.tasks import Tasks
from dmole_cli.settings.model import TrainSettings


def training_samples(task: str, shares: Mapping[str, float], *, data: Tasks, seed: int) -> Sequence[Sample]:
    """The task's own samples, then a seeded choice of other tasks' samples, each in the order of its split.

    The choice does not depend on the task that trains: every later task sees the same samples again, so that a method
    has to store only this share.

    Args:
        task: the one that trains.
        shares: task -> share of its training split, from 0 to 1, rounded up to whole samples.
        data: the tasks.
        seed: of the run.
    """
    splits, chosen, before = list[Sequence[Sample]](), array("q"), 0
    for name in sorted(shares, key=lambda other: other != task):
        split = data.samples(name, "train")
        # As the decimal that the user wrote: in binary, 0.55 of 100 is more than 55.
        count = math.ceil(Decimal(str(shares[name])) * len(split))
        generator = torch.Generator().manual_seed(seed_for(seed, name, "share"))
        rows = torch.randperm(len(split), generator=generator)[:count]
        chosen.extend(before + row for row in sorted(rows.tolist()))
        splits.append(split)
        before += len(split)
    return Picked(splits, chosen)


def recipe_for(chosen: TrainSettings, card: TaskCard, options: Mapping[str, float]) -> dict[str, Any]:
    """The training recipe: the settings where they are given, then the method's learning rate, then the card's values."""
    recipe = chosen.for_header()
    recipe["learning_rate"] = recipe["learning_rate"] or options["learning_rate"]
    recipe = {key: value or getattr(card.recipe, key, value) for key, value in recipe.items()}
    # Recorded only where rows are repeated: headers of artifacts made before `repeats` existed stay equal.
    return recipe | ({"repeats": card.recipe.repeats} if card.recipe.repeats > 1 else {})
