"""Training steps of task 20 against those of task 1: each sample has one of nineteen transfer experts, at random.

As in `train-task`, only experts that some sample is routed to are loaded, only those of a batch's own samples are computed, and
samples with the same route are batched together. A second kind of rows leaves out the last, so that every batch has random
routes. First on the model of `step`, then on the embedded backbone, whose layers are so narrow (128 and 192) that sixteen
experts of rank 8 are nearly as wide as the layers.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from dmole_cli.backbones.sites import find_sites
from dmole_cli.training.order import shuffled_batches
from pipelines.bench._models import half_of, random_samples
from pipelines.bench._stream import embedded, some_samples
from pipelines.bench._timing import Row, Variant, interleaved, timed
from pipelines.bench.step import Case, case, ours

TASKS = [str(number) for number in range(1, 21)]
NEWEST, EARLIER = TASKS[-1], TASKS[:-1]
SPLIT, BATCHES = 2560, 2


def twenty_tasks(small: Case) -> Case:
    """The same model and batch with the experts of twenty tasks, each on its own random half of the sites."""
    sites = [site.name for site in find_sites(small.backbone.model, "attention")]
    return Case(small.backbone, {task: half_of(sites, seed=i) for i, task in enumerate(TASKS)}, small.batch)


def on_random_model(*, tiny: bool) -> Case:
    """The model of `step` and samples of one tile, all of the same length."""
    small = case(tiny=tiny)
    small.batch = random_samples(small.backbone, 8, text=8 if tiny else 40, answer=3 if tiny else 8, tiles=1)
    return twenty_tasks(small)


def on_embedded(*, tiny: bool) -> Case:
    """The embedded backbone and the task `digits`, whose questions and answers have nearly the same length."""
    backbone = embedded()
    samples = some_samples("digits", "train", 2 if tiny else 32)
    return twenty_tasks(Case(backbone, {}, [backbone.encode(sample, with_answer=True) for sample in samples]))


def routes(size: int, *, together: bool) -> list[list[tuple[str, ...]]]:
    """The experts of each sample of some batches, drawn from a split as large as those of the built-in stream.

    Args:
        size: of a batch.
        together: whether samples of the same route are batched together, as in `train-task`.
    """
    choose = random.Random(0)
    transfer = [(choose.choice(EARLIER),) for _ in range(SPLIT)]
    same = [0] * SPLIT  # lengths
    # Of this seed's first two batches of 32, one has two routes: 1.5 routes per batch, against 1.23 over the whole epoch.
    order = shuffled_batches(SPLIT, size, epochs=1, seed=2, lengths=same, transfer=transfer if together else None)
    return [[(NEWEST, *transfer[i]) for i in rows] for rows in order[:BATCHES]]


def steps(made: Case, batches: Sequence[list[tuple[str, ...]]]) -> Variant:
    """One step per batch of routes; gives the losses."""
    experts = made.experts()
    run = [ours(made, experts, sets) for sets in batches]
    return lambda: [step() for step in run]


def compare(*, rounds: int | None = None, tiny: bool = False) -> list[Row]:
    """Time of the steps."""
    rows = []
    for name, made in (("", on_random_model(tiny=tiny)), (", embedded backbone", on_embedded(tiny=tiny))):
        size = len(made.batch)
        variants = {
            "task 1": steps(made, [[(NEWEST,)] * size] * BATCHES),
            "task 20": steps(made, routes(size, together=True)),
            "task 20, routes at random": steps(made, routes(size, together=False)),
        }
        times = interleaved(variants, rounds=rounds or (1 if tiny else 2))
        over = f"training step{name}: task 20 over task 1"
        rows.append(timed(over, times, "task 20", "task 1", 1.10))
        rows.append(timed(f"{over}, routes at random inside each batch", times, "task 20, routes at random", "task 1"))
    return rows
