"""The micro-batches that a process computes, encoded, in the order of the steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from dmole_cli.backbones.backbone import Backbone
from dmole_cli.backbones.batches import encoded_batches
from dmole_cli.data.sample import Sample
from dmole_cli.processes import world
from dmole_cli.training.loop import Batch

# (step, row) -> names of the active experts of a sample.
Active = Callable[[int, int], Sequence[str]]


def micro_batches(
    backbone: Backbone,
    samples: Sequence[Sample],
    steps: Sequence[Sequence[Sequence[int]]],
    *,
    active: Active,
    first: int = 0,
    max_length: int = 0,
) -> Iterator[Batch]:
    """Encode this process's micro-batches of the steps that are left; those of a step are dealt out to the processes in turn.

    Args:
        backbone: encodes the samples.
        samples: training samples.
        steps: indices of the samples of each micro-batch of each step.
        active: names of a sample's active experts.
        first: the first step that is left.
        max_length: maximum number of tokens of a sample, 0 for no limit.

    Raises:
        DmoleError: a sample cannot be read or encoded.
    """
    own = [(step, rows) for step in range(first, len(steps)) for rows in steps[step][world().rank :: world().size]]
    encoded = encoded_batches(backbone, samples, [rows for _, rows in own], with_answer=True, max_length=max_length)
    visited, done = bytearray(len(samples)), 0
    for (step, rows), batch in zip(own, encoded, strict=True):
        for parts in steps[done:step]:
            for part in parts:
                for row in part:
                    visited[row] = 1
        done = step
        truncated = {row for row, sample in zip(rows, batch, strict=True) if sample.truncated and not visited[row]}
        # Two micro-batches of a step may hold the same sample.
        yield Batch(
            [samples[row].sample_id for row in rows], [active(step, row) for row in rows], batch, len(truncated)
        )
