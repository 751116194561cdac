"""How much each stage has to compute for a task: samples, batches and tokens, from the data and the recipe alone."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dmole_cli.artifacts.kinds import D_MOLE
from dmole_cli.backbones.inputs import Inputs
from dmole_cli.data.sample import Sample
from dmole_cli.data.seeds import seed_for
from dmole_cli.data.tasks import Tasks
from dmole_cli.methods.base import load_method
from dmole_cli.planning.durations import STAGES, Part
from dmole_cli.planning.inputs import PlanInputs
from dmole_cli.profiling.sensitivity import draw_batches
from dmole_cli.training.order import shuffled_batches
from dmole_cli.training.samples import recipe_for, row_counts

FEATURE_BATCH = 64  # samples per batch of features, as in routing/features.py
# Distinct sets of active experts of a sample over all entries of the score matrix: none, and from its own task on that
# task's expert. Samples of a task that never trains have none.
SETS, SETS_OF_UNSEEN = 2, 1


@dataclass(frozen=True)
class TaskWork:
    """The work of one task.

    Attributes:
        task: its name.
        trains: whether it is a task of the stream, which all stages process; others are evaluated only.
        train: training samples; empty where it does not train.
        test: samples of the evaluated split.
        profile_batches: rows of each batch of profiling.
        steps: rows of each step of training.
        profile_tokens: tokens in the batches of profiling, padding included.
        train_tokens: tokens in the steps of training, padding included.
        entries: entries of the score matrix.
        micro_batch: samples of a micro-batch of training; 0 where a step is one.
        reading: split -> seconds of reading and digesting its records: by the wall clock, and of processor time.
    """

    task: str
    trains: bool
    train: Sequence[Sample]
    test: Sequence[Sample]
    profile_batches: list[list[int]] = field(default_factory=list)
    steps: list[list[int]] = field(default_factory=list)
    profile_tokens: int = 0
    train_tokens: int = 0
    entries: int = 0
    micro_batch: int = 0
    reading: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def sets(self) -> int:
        """Assumed number of distinct sets of active experts of a sample."""
        return SETS if self.trains else SETS_OF_UNSEEN

    @property
    def step_shares(self) -> int:
        """Micro-batches of a step."""
        return -(-max(map(len, self.steps), default=1) // self.micro_batch) if self.micro_batch else 1

    def as_dict(self) -> dict[str, Any]:
        """The amounts, as JSON values."""
        return {
            "task": self.task,
            "training_samples": len(self.train),
            "profile_batches": len(self.profile_batches),
            "profile_tokens": self.profile_tokens,
            "steps": len(self.steps),
            "training_tokens": self.train_tokens,
            "evaluated_samples": len(self.test),
            "entries": self.entries,
            "predictions": self.sets * len(self.test),
        }


def stream_work(inputs: PlanInputs, tasks: Sequence[str], prepared: Inputs) -> list[TaskWork]:
    """The work of some tasks.

    Args:
        inputs: of the plan.
        tasks: names; a task that is not in the stream is evaluated only.
        prepared: counts the tokens of samples.
    """
    return [_work_of(inputs, task, prepared) for task in tasks]


def _work_of(inputs: PlanInputs, task: str, prepared: Inputs) -> TaskWork:
    settings, data = inputs.settings, inputs.data
    count, reading = len(settings.tasks) + 1, {}
    test, reading["test"] = _read(data, task, settings.evaluate.split)
    if task not in settings.tasks:
        return TaskWork(task, False, (), test, entries=count, reading=reading)
    train, reading["train"] = _read(data, task, "train")
    chosen = settings.profile
    recipe = recipe_for(
        task,
        {task: data.card(task)},
        chosen=settings.train,
        options=load_method(D_MOLE).option_values(settings),
        rows=row_counts(task, {task: 1.0}, data=data),
        own_epochs=False,
    )
    rows, visits = recipe.entries()
    lengths = _lengths(train, prepared, max_length=settings.train.max_length)
    order = shuffled_batches(
        len(rows),
        recipe.batch_size,
        epochs=max(visits),
        seed=seed_for(settings.seed, task, "order"),
        lengths=[lengths[row] for row in rows],
        visits=visits,
    )
    profiled = draw_batches(len(train), chosen.portion, chosen.batch_size, seed=seed_for(chosen.seed, task, "profile"))
    steps = [[rows[entry] for entry in step] for step in order]
    tokens = (_padded(profiled, lengths), _padded(steps, lengths))
    return TaskWork(task, True, train, test, profiled, steps, *tokens, count, inputs.micro_batch, reading)


def _read(data: Tasks, task: str, split: str) -> tuple[Sequence[Sample], tuple[float, float]]:
    """The samples of a split, and the seconds that reading them took."""
    wall, cpu = time.perf_counter(), time.process_time()
    samples = data.samples(task, split)
    data.inputs((task, split))
    return samples, (time.perf_counter() - wall, time.process_time() - cpu)


def reading_parts(work: Sequence[TaskWork]) -> Iterator[Part]:
    """The time in which every stage reads the data of its tasks, to compare it with what artifacts were made from."""
    for item in work:
        for split, seconds in item.reading.items():
            for stage in STAGES if split == "train" else ("evaluate",):
                yield Part(stage, item.task, f"reading {split}", *seconds)


def _lengths(samples: Sequence[Sample], prepared: Inputs, *, max_length: int) -> list[int]:
    """Tokens of each sample with its answer; the template's are those of the first sample."""
    lengths = prepared.lengths(samples, with_answer=True)
    template = len(prepared.encode(samples[0], with_answer=True).tokens) - lengths[0] if samples else 0
    return [min(length + template, max_length or length + template) for length in lengths]


def _padded(batches: Sequence[Sequence[int]], lengths: Sequence[int]) -> int:
    return sum(len(batch) * max(lengths[row] for row in batch) for batch in batches)
