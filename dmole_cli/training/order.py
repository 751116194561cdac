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
    transfer: Sequence[tuple[str, ...]] | None = None,
    visits: Sequence[int] | None = None,
) -> list[list[int]]:
    """Indices of `epochs` passes, each in its own seeded order, in batches; the last batch of a pass may be smaller.

    Args:
        count: number of samples.
        batch_size: samples per step.
        epochs: number of passes.
        seed: of the order.
        lengths: tokens of each sample. Where given, each window of WINDOW batches is sorted by length, so that
            batches hold little padding, and the batches of a pass are shuffled again.
        transfer: transfer experts of each sample. Samples with the same ones are neighbours within a window, which
            is longer by the number of different sets: then few batches (those where one set ends and the next
            begins) stack the experts of several sets, and lengths stay as similar as without transfer experts.
        visits: number of passes in which each sample takes part, at most `epochs`, which is the default. Samples that take
            part in fewer passes are spread over all of them, so that every pass has about the same mixture.
    """
    sets = [tuple(sorted(names)) for names in transfer] if transfer else [()] * count
    window = WINDOW * batch_size * max(1, len(set(sets)))
    generator = torch.Generator().manual_seed(seed)
    out: list[list[int]] = []
    for epoch in range(epochs):
        order = torch.randperm(count, generator=generator).tolist()
        if visits is not None:
            order = [row for row in order if _takes_part(row, epoch, visits=visits[row], epochs=epochs)]
        if lengths is None:
            out += [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
            continue
        sorted_rows = [
            row
            for start in range(0, len(order), window)
            for row in _sorted(order[start : start + window], lengths, sets)
        ]
        batches = [sorted_rows[start : start + batch_size] for start in range(0, len(order), batch_size)]
        out += [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
    return out


def _takes_part(row: int, epoch: int, *, visits: int, epochs: int) -> bool:
    """Whether a sample takes part in a pass: in `visits` of `epochs` passes at equal distances, from an offset of its own."""
    return ((epoch + 1) * visits + row % epochs) // epochs > (epoch * visits + row % epochs) // epochs


def _sorted(rows: Sequence[int], lengths: Sequence[int], sets: Sequence[tuple[str, ...]]) -> list[int]:
    """Rows by their set of experts, then by length, ascending and descending in turn, so that neighbours are similar."""
    members: dict[tuple[str, ...], list[int]] = {}
    for row in rows:
        members.setdefault(sets[row], []).append(row)
    return [
        row
        for position, names in enumerate(sorted(members))
        for row in sorted(members[names], key=lengths.__getitem__, reverse=position % 2 == 1)
    ]
