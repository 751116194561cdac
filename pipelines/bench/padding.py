"""Training tokens computed over tokens needed, in the batches that `train-task` makes of each task of the stream.

Nothing is timed: the embedded backbone counts what it computes. Once as in the first task, where no earlier expert can join, and
once with every sample routed to one of nineteen earlier tasks at random, which batches are sorted by, too.
"""

from __future__ import annotations

import random

import torch

from dmole_cli.backbones.backbone import Backbone
from dmole_cli.data.loading import load_card
from dmole_cli.settings.model import DEFAULT_TASKS
from dmole_cli.training.order import shuffled_batches
from pipelines.bench._stream import embedded, some_samples
from pipelines.bench._timing import Row, counted


@torch.no_grad()
def share(backbone: Backbone, task: str, *, batches: int, sorted_by_length: bool = True, earlier: int = 0) -> float:
    """Tokens computed over those needed in some batches of the first pass over a task's training split.

    Args:
        backbone: counts them.
        task: of the stream.
        batches: how many.
        sorted_by_length: as `train-task` does.
        earlier: tasks, one of which joins each sample.
    """
    card, samples = load_card(task), some_samples(task, "train", 10_000)
    lengths = backbone.lengths(samples, with_answer=True) if sorted_by_length else None
    choose = random.Random(0)
    joins = [(str(choose.randrange(earlier)),) for _ in samples] if earlier else None
    order = shuffled_batches(len(samples), card.recipe.batch_size, epochs=1, seed=0, lengths=lengths, joins=joins)
    backbone.counts.clear()
    for rows in order[:batches]:
        inputs, _ = backbone.collate([backbone.encode(samples[i], with_answer=True) for i in rows], left=False)
        backbone.answer_loss(inputs)
    return backbone.counts["training_tokens"] / backbone.counts["training_tokens_needed"]


def compare(*, rounds: int | None = None, tiny: bool = False) -> list[Row]:
    """The worst task of the stream, and what it would be in plain random batches."""
    backbone, batches = embedded(), 1 if tiny else 12
    tasks = DEFAULT_TASKS[:1] if tiny else DEFAULT_TASKS
    found = {task: share(backbone, task, batches=batches) for task in tasks}
    worst = max(found, key=found.__getitem__)
    return [
        counted(f"training tokens computed over needed, worst task ({worst})", found[worst], 1.05),
        counted("the same, samples routed to 19 tasks", share(backbone, worst, batches=batches, earlier=19), 1.05),
        counted("the same in random batches", share(backbone, worst, batches=batches, sorted_by_length=False)),
    ]
