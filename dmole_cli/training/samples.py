"""The samples that train at a task, and the recipe that they are trained by."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import accumulate
from typing import Any

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
    import torch

    splits, chosen, before = list[Sequence[Sample]](), array("q"), 0
    for name in sorted(shares, key=lambda other: other != task):
        split = data.samples(name, "train")
        count = _count(shares[name], len(split))
        if count == len(split):
            chosen.extend(range(before, before + count))
        else:
            generator = torch.Generator().manual_seed(seed_for(seed, name, "share"))
            rows = torch.randperm(len(split), generator=generator)[:count].sort().values + before
            chosen.frombytes(rows.numpy().tobytes())
        splits.append(split)
        before += len(split)
    return Picked(splits, chosen)


def row_counts(task: str, shares: Mapping[str, float], *, data: Tasks) -> dict[str, int]:
    """Task -> number of its rows among `training_samples`, in their order."""
    names = sorted(shares, key=lambda other: other != task)
    return {name: _count(shares[name], len(data.samples(name, "train"))) for name in names}


def _count(share: float, rows: int) -> int:
    # As the decimal that the user wrote: in binary, 0.55 of 100 is more than 55.
    return math.ceil(Decimal(str(share)) * rows)


@dataclass(frozen=True)
class Recipe:
    """How the samples of a training run are visited, and at which learning rate.

    Attributes:
        epochs: task -> passes over its rows.
        repeats: task -> how often a pass visits each of its rows.
        rows: task -> number of its rows, in the order of the samples.
        settings: the recipe as it is recorded in the header of the expert.
    """

    epochs: Mapping[str, int]
    repeats: Mapping[str, int]
    rows: Mapping[str, int]
    settings: Mapping[str, Any]

    @property
    def batch_size(self) -> int:
        """Samples per step."""
        return int(self.settings["batch_size"])

    @property
    def visited_again(self) -> bool:
        """Whether a row is visited more than once."""
        return any(self.epochs[name] * self.repeats[name] > 1 for name in self.rows)

    def entries(self) -> tuple[array[int], array[int]]:
        """The entries of a full pass: the row of each, and the number of passes in which it takes part."""
        starts = dict(zip(self.rows, accumulate(self.rows.values(), initial=0), strict=False))
        rows, visits = array("q"), array("i")
        for copy in range(max(self.repeats.values())):
            for name, count in self.rows.items():
                if copy < self.repeats[name]:
                    rows.extend(range(starts[name], starts[name] + count))
                    visits.extend(array("i", [self.epochs[name]]) * count)
        return rows, visits


def recipe_for(
    task: str,
    cards: Mapping[str, TaskCard],
    *,
    chosen: TrainSettings,
    options: Mapping[str, float],
    rows: Mapping[str, int],
    own_epochs: bool,
) -> Recipe:
    """The training recipe: the settings where they are given, then the method's learning rate, then the cards' values.

    A card's repeats always hold for the task's own rows. A step has samples of all tasks, so there is one batch size and one
    learning rate: with `own_epochs` those of the cards that most visits belong to, whatever the order of the tasks; else
    those of the task that trains.

    Args:
        task: the one that trains.
        cards: of the tasks whose samples train.
        chosen: the settings.
        options: of the method.
        rows: from `row_counts`.
        own_epochs: a card's epochs hold for the task's own rows; else those of the task that trains hold for all rows.
    """
    recipes = {name: cards[name].recipe for name in rows}
    epochs = {name: chosen.epochs or recipes[name if own_epochs else task].epochs for name in rows}
    repeats = {name: recipe.repeats for name, recipe in recipes.items()}
    recipe = chosen.for_header()
    recipe["learning_rate"] = recipe["learning_rate"] or options["learning_rate"]
    deciding = recipes if own_epochs else {task: recipes[task]}
    weights = {name: rows[name] * epochs[name] * repeats[name] for name in deciding}
    for key in ("batch_size", "learning_rate"):
        recipe[key] = recipe[key] or _most_visited({name: getattr(deciding[name], key) for name in deciding}, weights)
    recipe["epochs"] = _shared(epochs)
    # Recorded only where rows are repeated: headers of artifacts made before `repeats` existed stay equal.
    return Recipe(epochs, repeats, rows, recipe | ({"repeats": _shared(repeats)} if max(repeats.values()) > 1 else {}))


def _most_visited(values: Mapping[str, float], weights: Mapping[str, int]) -> float:
    """The value that most visits belong to; of equally many, the larger one."""
    totals: dict[float, int] = {}
    for name, value in values.items():
        totals[value] = totals.get(value, 0) + weights[name]
    return max(totals, key=lambda value: (totals[value], value))


def _shared(values: Mapping[str, int]) -> Any:
    """The value of all tasks where they agree, else the values by task."""
    return next(iter(values.values())) if len(set(values.values())) == 1 else dict(values)
