"""A training step of task 20 against one of task 1: every sample of the batch is routed to another task's expert, at random.

Nineteen earlier experts exist; as in `train-task`, those that the task's samples are routed to are loaded, and a batch runs
those that its own samples are routed to. First on the model of `step`, then on the embedded backbone, whose layers are so narrow
(128 and 192) that sixteen experts of rank 8 are nearly as wide as they are.
"""

from __future__ import annotations

import random

from dmole_cli.backbones.sites import find_sites
from pipelines.bench._models import half_of, random_samples
from pipelines.bench._stream import embedded, some_samples
from pipelines.bench._timing import Row, interleaved, timed
from pipelines.bench.step import Case, case, ours

TASKS = [str(number) for number in range(1, 21)]
NEWEST, EARLIER = TASKS[-1], TASKS[:-1]


def twenty_tasks(small: Case) -> Case:
    """The same model and batch with the experts of twenty tasks, each on another half of the sites."""
    sites = [site.name for site in find_sites(small.backbone.model, "attention")]
    return Case(small.backbone, {task: half_of(sites, seed=i) for i, task in enumerate(TASKS)}, small.batch)


def on_random_model(*, tiny: bool) -> Case:
    """The model of `step`, eight samples of one tile."""
    small = case(tiny=tiny)
    small.batch = random_samples(small.backbone, 8, text=8 if tiny else 40, answer=3 if tiny else 8, tiles=1)
    return twenty_tasks(small)


def on_embedded(*, tiny: bool) -> Case:
    """The embedded backbone and a batch of handwritten numbers."""
    backbone = embedded()
    samples = some_samples("digits", "train", 2 if tiny else 32)
    return twenty_tasks(Case(backbone, {}, [backbone.encode(sample, with_answer=True) for sample in samples]))


def compare(*, rounds: int | None = None, tiny: bool = False) -> list[Row]:
    """Time of a step."""
    rows = []
    for name, made in (("", on_random_model(tiny=tiny)), (", embedded backbone", on_embedded(tiny=tiny))):
        choose = random.Random(0)
        alone = [(NEWEST,) for _ in made.batch]
        mixed = [(NEWEST, choose.choice(EARLIER)) for _ in made.batch]
        variants = {
            "task 1": ours(made, made.experts(), alone),
            "task 20": ours(made, made.experts(), mixed),
        }
        times = interleaved(variants, rounds=rounds or (1 if tiny else 7))
        rows.append(timed(f"training step{name}: task 20 over task 1", times, "task 20", "task 1", 1.10))
    return rows
