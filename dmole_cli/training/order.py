"""The order in which a training run visits its samples: seeded, with little padding and few sets of experts in a batch."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import overload

import numpy as np
import torch

from dmole_cli.backbones.inputs import Lengths

WINDOW = 50  # batches within which samples are sorted by length


def shuffled_batches(
    count: int,
    batch_size: int,
    *,
    epochs: int,
    seed: int,
    lengths: Sequence[int] | Lengths | None = None,
    transfer: Sequence[tuple[str, ...]] | None = None,
    visits: Sequence[int] | None = None,
    rows: Sequence[int] | None = None,
) -> ShuffledBatches:
    """Samples of `epochs` passes, each in its own seeded order, in batches; the last batch of a pass may be smaller.

    Args:
        count: number of entries, the samples of a whole pass.
        batch_size: samples per step.
        epochs: number of passes.
        seed: of the order.
        lengths: tokens of each sample. Where given, each window of WINDOW batches is sorted by length, so that
            batches hold little padding, and the batches of a pass are shuffled again.
        transfer: transfer experts of each sample. Samples with the same ones are neighbours within a window, which
            is longer by the number of different sets: then few batches (those where one set ends and the next
            begins) stack the experts of several sets, and lengths stay as similar as without transfer experts.
        visits: number of passes in which each entry takes part, at most `epochs`, which is the default. Entries that take
            part in fewer passes are spread over all of them, so that every pass has about the same mixture.
        rows: index of each entry's sample; None: the entry's own.
    """
    rows = range(count) if rows is None else rows
    sets = _numbered(transfer, rows) if transfer and lengths is not None else None
    taking_part = None if visits is None or min(visits, default=epochs) == epochs else np.asarray(visits)
    window = WINDOW * batch_size * max(1, len(set(sets or ())))
    generator = torch.Generator().manual_seed(seed)
    return ShuffledBatches(_Order(count, batch_size, epochs, window, lengths, sets, taking_part, rows), generator)


def transfer_shares(
    earlier: Sequence[str],
    transfer: Sequence[tuple[str, ...]],
    entries: tuple[Sequence[int], Sequence[int]],
    voted: Sequence[tuple[str, ...]],
    sizes: Sequence[int],
) -> dict[str, float]:
    """Earlier task -> share (0..1) of the visits to training samples in which its expert was active.

    A sample that several passes visit counts once for each of them. The shares follow from the choices before training, so that
    an interrupted run, and any number of processes, have the same.

    Args:
        earlier: names of the earlier tasks.
        transfer: transfer experts of each sample.
        entries: the row of each entry of a full pass, and the number of passes in which it takes part.
        voted: transfer experts of each step, for all of its samples.
        sizes: number of samples of each step.
    """
    counts: Counter[str] = Counter()
    if any(transfer):
        for row, visits in zip(*entries, strict=True):
            counts.update(dict.fromkeys(transfer[row], visits))
    for names, size in zip(voted, sizes, strict=True):
        counts.update(dict.fromkeys(names, size))
    return {name: counts[name] / sum(sizes) for name in earlier}


def _numbered(transfer: Sequence[tuple[str, ...]], rows: Sequence[int]) -> array[int]:
    """The set of transfer experts of each sample, by its rank among the different ones of these rows."""
    known: dict[tuple[str, ...], tuple[str, ...]] = {}
    for row in rows:
        if transfer[row] not in known:
            known[transfer[row]] = tuple(sorted(transfer[row]))
    ranks = {names: rank for rank, names in enumerate(sorted(set(known.values())))}
    return array("i", (ranks[known[names]] if names in known else 0 for names in transfer))


@dataclass(frozen=True)
class _Order:
    """What every pass has in common: see `shuffled_batches`; `window` is in samples, `sets` by sample, `visits` by entry."""

    count: int
    batch_size: int
    epochs: int
    window: int
    lengths: Sequence[int] | Lengths | None
    sets: Sequence[int] | None
    visits: np.ndarray | None
    rows: Sequence[int]

    def taking_part(self, entries: np.ndarray, epoch: int) -> np.ndarray:
        """Those entries that take part in a pass: in `visits` of `epochs` passes at equal distances, each from its own offset."""
        if self.visits is None:
            return entries
        visits, offsets = self.visits[entries], entries % self.epochs
        before, after = ((number * visits + offsets) // self.epochs for number in (epoch, epoch + 1))
        return entries[after > before]


class _Pass:
    """The batches of one pass; a window is sorted when the first of its batches is asked for."""

    def __init__(self, order: _Order, epoch: int, generator: torch.Generator) -> None:
        self.order = order
        entries = torch.randperm(order.count, generator=generator).numpy()
        self.entries = order.taking_part(entries, epoch)
        self.number = -(-len(self.entries) // order.batch_size)
        self.shuffled = None if order.lengths is None else torch.randperm(self.number, generator=generator).numpy()
        self.sorted = bytearray(-(-len(self.entries) // order.window))

    def size_of(self, position: int) -> int:
        """Number of samples of a batch."""
        place = position if self.shuffled is None else int(self.shuffled[position])
        return min(self.order.batch_size, len(self.entries) - place * self.order.batch_size)

    def batch(self, position: int) -> list[int]:
        size, rows = self.order.batch_size, self.order.rows
        if self.shuffled is not None:
            position = int(self.shuffled[position])
            self._sort(position * size // self.order.window)
        return [rows[entry] for entry in self.entries[position * size : (position + 1) * size].tolist()]

    def _sort(self, window: int) -> None:
        if self.sorted[window]:
            return
        part = slice(window * self.order.window, (window + 1) * self.order.window)
        entries = self.entries[part].tolist()
        rows = [self.order.rows[entry] for entry in entries]
        lengths, sets = self.order.lengths, self.order.sets
        assert lengths is not None
        keys = lengths.of(rows) if isinstance(lengths, Lengths) else [lengths[row] for row in rows]
        self.entries[part] = _sorted(entries, keys, [0] * len(rows) if sets is None else [sets[row] for row in rows])
        self.sorted[window] = True


class ShuffledBatches(Sequence[list[int]]):
    """The batches of all passes, made on access, so that neither memory nor the time of the start grows with their number.

    Lengths are counted window by window, and the order of two passes is in memory.

    Args:
        order: what all passes have in common.
        generator: seeded.

    Attributes:
        sizes: number of samples of every batch, known without making it.
    """

    def __init__(self, order: _Order, generator: torch.Generator) -> None:
        self._order = order
        self._starts, self._states, self.sizes = [0], list[torch.Tensor](), array("i")
        for epoch in range(order.epochs):
            self._states.append(generator.get_state())
            drawn = _Pass(order, epoch, generator)
            self._starts.append(self._starts[-1] + drawn.number)
            self.sizes.extend(drawn.size_of(position) for position in range(drawn.number))
        self._passes = dict[int, _Pass]()
        self._lock = Lock()  # a thread may prepare batches ahead of the one that trains

    def __len__(self) -> int:
        return self._starts[-1]

    def __iter__(self) -> Iterator[list[int]]:
        return map(self.__getitem__, range(len(self)))

    @overload
    def __getitem__(self, index: int) -> list[int]: ...
    @overload
    def __getitem__(self, index: slice) -> list[list[int]]: ...
    def __getitem__(self, index: int | slice) -> list[int] | list[list[int]]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        with self._lock:
            epoch = bisect_right(self._starts, index) - 1
            return self._pass(epoch).batch(index - self._starts[epoch])

    def _pass(self, epoch: int) -> _Pass:
        if epoch not in self._passes:
            while len(self._passes) > 1:  # whoever prepares batches is at most one pass ahead of the training
                del self._passes[next(iter(self._passes))]
            generator = torch.Generator()
            generator.set_state(self._states[epoch])
            self._passes[epoch] = _Pass(self._order, epoch, generator)
        return self._passes[epoch]


def _sorted(entries: Sequence[int], lengths: Sequence[int], sets: Sequence[int]) -> list[int]:
    """Entries by their set of experts, then by length, ascending and descending in turn, so that neighbours are similar."""
    members: dict[int, list[int]] = {}
    for position, number in enumerate(sets):
        members.setdefault(number, []).append(position)
    return [
        entries[position]
        for turn, number in enumerate(sorted(members))
        for position in sorted(members[number], key=lengths.__getitem__, reverse=turn % 2 == 1)
    ]
