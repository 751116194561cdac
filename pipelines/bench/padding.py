"""Computed over needed training tokens, padding included, in the batches of `train-task` for each task of the stream.

Nothing is timed: the embedded backbone counts tokens. Once as in the first task, without transfer experts, and once with one of
nineteen transfer experts per sample, at random, by which batches are sorted, too.
"""

from __future__ import annotations

import random

import torch

from dmole_cli.backbones.backbone import Backbone
from dmole_cli.data.card import load_card
from dmole_cli.training.order import shuffled_batches
from pipelines.bench._stream import TASKS, embedded, some_samples
from pipelines.bench._timing import Row, counted


@torch.no_grad()
def share(backbone: Backbone, task: str, *, batches: int, sorted_by_length: bool = True, earlier: int = 0) -> float:
    """Computed over needed tokens in some batches of a task's first epoch.

    Args:
        backbone: counts the tokens.
        task: of the stream.
        batches: number of batches.
        sorted_by_length: whether samples of similar length are batched together, as in `train-task`.
        earlier: number of earlier tasks, one of which is each sample's transfer expert.
    """
    card, samples = load_card(task), some_samples(task, "train", 10_000)
    lengths = backbone.lengths(samples, with_answer=True) if sorted_by_length else None
    choose = random.Random(0)
    transfer = [(str(choose.randrange(earlier)),) for _ in samples] if earlier else None
    order = shuffled_batches(len(samples), card.recipe.batch_size, epochs=1, seed=0, lengths=lengths, transfer=transfer)
    backbone.counts.clear()
    for rows in order[:batches]:
        inputs, _ = backbone.collate([backbone.encode(samples[i], with_answer=True) for i in rows], left=False)
        backbone.answer_loss(inputs)
    return backbone.counts["training_tokens"] / backbone.counts["training_tokens_needed"]


def compare(*, rounds: int | None = None, tiny: bool = False) -> list[Row]:
    """The worst task of the stream, and the same task in random batches."""
    backbone, batches = embedded(), 1 if tiny else 12
    tasks = TASKS[:1] if tiny else TASKS
    found = {task: share(backbone, task, batches=batches) for task in tasks}
    worst = max(found, key=found.__getitem__)
    return [
        counted(f"training tokens: computed over needed, worst task ({worst})", found[worst], 1.05),
        counted(
            "the same with one of 19 transfer experts per sample",
            share(backbone, worst, batches=batches, earlier=19),
            1.05,
        ),
        counted("the same in random batches", share(backbone, worst, batches=batches, sorted_by_length=False)),
    ]
