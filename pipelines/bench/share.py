"""Profiling a task against one epoch of training it: the embedded backbone, the full training splits of the built-in stream.

Profiling is the whole stage, as `profile --force` runs it: draw the subset, encode its samples, measure, write. Training is some
steps of `train-task`, on batches of representative lengths, and their time is scaled to the 80 steps of the epoch. Training is
timed favourably: its samples are encoded beforehand, which a worker process does otherwise, and there are no transfer experts,
which the routers of this stream hardly ever choose. Model and libraries are loaded before either.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dmole_cli.artifacts.allocation import ranks_of, scale_of
from dmole_cli.backbones.batches import encoded_batches
from dmole_cli.data.seeds import seed_for
from dmole_cli.experts.expert import new_expert
from dmole_cli.training.loop import Batch, Schedule, train_expert
from dmole_cli.training.order import shuffled_batches
from pipelines.bench._models import attached
from pipelines.bench._stream import StreamRun
from pipelines.bench._timing import Row, Times, Variant, interleaved, timed

STEPS = 3  # of a task's epoch, in each round
PROFILING, TRAINING = "profiling", "training"


def training(stream: StreamRun, task: str, *, steps: int) -> tuple[Variant, int]:
    """A function that runs some steps of a task's first epoch and gives their losses, and the epoch's number of steps."""
    backbone, samples, recipe = stream.backbone, stream.samples(task, "train"), stream.card(task).recipe
    lengths, seed = backbone.lengths(samples, with_answer=True), stream.settings.seed
    order = shuffled_batches(
        len(samples), recipe.batch_size, epochs=1, seed=seed_for(seed, task, "order"), lengths=lengths
    )
    chosen = spread(order, [max(lengths[i] for i in rows) for rows in order], count=steps)
    encoded = list(encoded_batches(backbone, samples, chosen, with_answer=True))
    batches = [
        Batch([samples[i].sample_id for i in rows], [(task,) for _ in rows], batch)
        for rows, batch in zip(chosen, encoded, strict=True)
    ]
    document = stream.allocation(task)
    shapes: dict[str, tuple[int, int, int]] = {}
    for site, rank in ranks_of(document).items():
        host: Any = backbone.model.get_submodule(site)
        shapes[site] = (rank, host.in_features, host.out_features)

    def run() -> list[float]:
        generator = torch.Generator().manual_seed(seed_for(seed, task, "expert"))
        expert = new_expert(shapes, scale=scale_of(document), generator=generator)
        routed = attached(backbone, {task: expert})
        try:
            figures = train_expert(
                backbone,
                routed,
                expert,
                batches,
                schedule=Schedule(len(batches), recipe.learning_rate, stream.settings.train),
            )
        finally:
            routed.close()
        return [row.loss for row in figures]

    return run, len(order)


def spread(order: Sequence[list[int]], lengths: Sequence[int], *, count: int) -> list[list[int]]:
    """The middle batch of each of `count` equal parts of all batches sorted by length, in the order of training."""
    by_length = sorted(range(len(order)), key=lengths.__getitem__)
    middles = (len(order) * (2 * part + 1) // (2 * count) for part in range(count))
    return [order[i] for i in sorted(by_length[middle] for middle in middles)]


def variants(stream: StreamRun, tasks: Sequence[str], *, steps: int) -> tuple[dict[str, Variant], dict[str, float]]:
    """Profiling and training of every task, run once; and the weight of each one's time."""
    made: dict[str, Variant] = {}
    weights: dict[str, float] = {}
    for task in tasks:
        stream.profile(task)
        stream.allocate(task)
        run, epoch = training(stream, task, steps=steps)
        run()
        made |= {f"{PROFILING} {task}": partial(stream.profile, task, force=True), f"{TRAINING} {task}": run}
        weights |= {f"{PROFILING} {task}": 100.0, f"{TRAINING} {task}": epoch / steps}  # in percent
    return made, weights


def together(times: Times, weights: Mapping[str, float]) -> Times:
    """Weighted time of profiling and of training over all tasks, per round."""
    parts = {
        what: [[seconds * weights[name] for seconds in row] for name, row in times.items() if name.startswith(what)]
        for what in (PROFILING, TRAINING)
    }
    return {what: [sum(column) for column in zip(*rows, strict=True)] for what, rows in parts.items()}


def compare(*, rounds: int | None = None, tiny: bool = False) -> list[Row]:
    """Time of all tasks together, in percent."""
    with tempfile.TemporaryDirectory() as folder:
        stream = StreamRun(Path(folder))
        made, weights = variants(stream, stream.tasks[:1] if tiny else stream.tasks, steps=1 if tiny else STEPS)
        times = interleaved(made, rounds=rounds or (1 if tiny else 3), warm=True)
    name = "profiling: time in percent of one epoch of training"
    return [timed(name, together(times, weights), PROFILING, TRAINING, 1.5)]
