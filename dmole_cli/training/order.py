"""The order in which a training run visits its samples: seeded, with little padding and few sets of experts in a batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

WINDOW = 50  # batches within which samples are sorted by length


def shuffled_batches(
    count: int,
    batch_size: int,
    *,
    epochs: int,
    seed: int,
    lengths: Sequence[int] | None = None,
    joins: Sequence[tuple[str, ...]] | None = None,
) -> list[list[int]]:
    """Indices of `epochs` passes, each in its own seeded order, in batches; the last batch of a pass may be smaller.

    Args:
        count: of samples.
        batch_size: of a step.
        epochs: passes.
        seed: of the order.
        lengths: of the samples; where given, each stretch of WINDOW batches is sorted by length, so that a batch holds
            little padding, and the batches of a pass are shuffled again.
        joins: the earlier experts that join each sample. Samples with the same ones go together within a stretch, which
            is longer by as many sets as there are, so that few batches (those where one set ends and the next begins)
            stack the experts of several, and lengths stay as alike as in a task that nobody joins.
    """
    joins = [tuple(sorted(names)) for names in joins] if joins else [()] * count
    stretch = WINDOW * batch_size * max(1, len(set(joins)))
    generator = torch.Generator().manual_seed(seed)
    out: list[list[int]] = []
    for _ in range(epochs):
        order = torch.randperm(count, generator=generator).tolist()
        if lengths is None:
            out += [order[start : start + batch_size] for start in range(0, count, batch_size)]
            continue
        sorted_rows = [
            row for start in range(0, count, stretch) for row in _alike(order[start : start + stretch], lengths, joins)
        ]
        batches = [sorted_rows[start : start + batch_size] for start in range(0, count, batch_size)]
        out += [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
    return out


def _alike(rows: Sequence[int], lengths: Sequence[int], joins: Sequence[tuple[str, ...]]) -> list[int]:
    """Rows by their set of experts, then by length: up in one set and down in the next, so that neighbours are alike."""
    members: dict[tuple[str, ...], list[int]] = {}
    for row in rows:
        members.setdefault(joins[row], []).append(row)
    return [
        row
        for place, names in enumerate(sorted(members))
        for row in sorted(members[names], key=lengths.__getitem__, reverse=place % 2 == 1)
    ]
