"""The micro-batches that a process computes, encoded, in the order of the steps."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import overload

from dmole_cli.backbones.ahead import collated
from dmole_cli.backbones.backbone import Backbone
from dmole_cli.backbones.batches import encoded_batches
from dmole_cli.data.sample import Sample
from dmole_cli.processes import world
from dmole_cli.settings.model import Settings
from dmole_cli.training.captured import captures
from dmole_cli.training.loop import Batch

# (step, row) -> names of the active experts of a sample.
Active = Callable[[int, int], Sequence[str]]


def counts_of(sizes: Sequence[int], micro_batch: int) -> list[int]:
    """Number of micro-batches of each step, from its number of samples; `micro_batch` is 0 for whole steps."""
    return [-(-size // micro_batch) if micro_batch else 1 for size in sizes]


class MicroBatches(Sequence[list[int]]):
    """Indices of the samples of this process's micro-batches: those of a step are dealt out to the processes in turn.

    Args:
        order: indices of the samples of each step; made on access.
        counts: number of micro-batches of each step.
        micro_batch: samples of a micro-batch, 0 for whole steps.
        first: the first step that is left.

    Attributes:
        steps: the step of each micro-batch.
    """

    def __init__(
        self, order: Sequence[Sequence[int]], counts: Sequence[int], micro_batch: int, *, first: int = 0
    ) -> None:
        self._order, self._micro_batch = order, micro_batch
        self.steps, self._parts = array("q"), array("q")
        for step in range(first, len(counts)):
            own = range(world().rank, counts[step], world().size)
            self.steps.extend([step] * len(own))
            self._parts.extend(own)

    def __len__(self) -> int:
        return len(self.steps)

    @overload
    def __getitem__(self, index: int) -> list[int]: ...
    @overload
    def __getitem__(self, index: slice) -> list[list[int]]: ...
    def __getitem__(self, index: int | slice) -> list[int] | list[list[int]]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        rows, start = list(self._order[self.steps[index]]), self._parts[index] * self._micro_batch
        return rows[start : start + self._micro_batch] if self._micro_batch else rows


def micro_batches(
    backbone: Backbone,
    samples: Sequence[Sample],
    order: Sequence[Sequence[int]],
    own: MicroBatches,
    *,
    active: Active,
    settings: Settings,
    again: bool,
) -> Iterator[Batch]:
    """Encode this process's micro-batches.

    Args:
        backbone: encodes the samples.
        samples: training samples.
        order: indices of the samples of each step.
        own: the micro-batches.
        active: names of a sample's active experts.
        settings: maximum length, workers and cache of encoded samples.
        again: whether samples are visited more than once, so that a cache is useful.

    Raises:
        DmoleError: a sample cannot be read or encoded.
    """
    limit = settings.train.max_length
    encoded = encoded_batches(
        backbone,
        samples,
        own,
        with_answer=True,
        max_length=limit,
        workers=settings.workers,
        cache=settings.sample_cache * 2**20 if again else 0,
    )
    few = settings.cuda_graphs and captures(backbone)
    visited, done = bytearray(len(samples)), 0
    for number, (batch, inputs, tower_rows) in enumerate(collated(backbone, encoded, left=False, few_lengths=few)):
        step, rows = own.steps[number], own[number]
        if limit:
            for earlier in range(done, step):
                for row in order[earlier]:
                    visited[row] = 1
            done = step
        # A sample that is in two micro-batches of a step counts in the first one.
        before = set(order[step][: order[step].index(rows[0])]) if limit else set[int]()
        truncated = {row for row, sample in zip(rows, batch, strict=True) if sample.truncated and not visited[row]}
        names = [active(step, row) for row in rows]
        ids = [samples[row].sample_id for row in rows]
        yield Batch(ids, names, batch, len(truncated - before), (inputs, tower_rows))
