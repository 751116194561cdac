"""Several batches in one forward and backward pass of profiling, where the processor that launches its kernels limits a GPU."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from dmole_cli.backbones.backbone import Backbone, Encoded
from dmole_cli.data.sample import Sample

# Below this number of tokens times parameters, a GPU computes a pass in less time than its kernels take to be launched: measured
# with a model of 2.2 billion parameters, 24 + 24 blocks, on an H200.
WORK = 4096 * 2.2e9
BATCHES = 4  # in a pass at most: the logits of all their answers exist at the same time


@dataclass(frozen=True)
class Pass:
    """Batches that are computed together.

    Attributes:
        first: number of the first batch, counted from 1 over all passes.
        batches: encoded samples with answers.
    """

    first: int
    batches: Sequence[list[Encoded]]


def in_passes(batches: Iterable[list[Encoded]], passes: Iterable[range]) -> Iterator[Pass]:
    """Group encoded batches.

    Args:
        batches: those of the passes, in order.
        passes: indices of the batches of each pass, among all batches.
    """
    source = iter(batches)
    for indices in passes:
        yield Pass(indices.start + 1, list(islice(source, len(indices))))


def plan_passes(backbone: Backbone, samples: Sequence[Sample], batches: Sequence[Sequence[int]]) -> list[range]:
    """Indices of the batches of each pass: on a GPU several small ones, elsewhere one.

    Args:
        backbone: its device and size decide.
        samples: of the task.
        batches: indices of the samples of each batch.
    """
    if backbone.device.type != "cuda":
        return [range(index, index + 1) for index in range(len(batches))]
    rows = [row for batch in batches for row in batch]
    lengths = dict(zip(rows, backbone.lengths([samples[row] for row in rows], with_answer=True), strict=True))
    return grouped([[lengths[row] for row in batch] for batch in batches], limit=WORK / backbone.parameters)


def grouped(lengths: Sequence[Sequence[int]], *, limit: float) -> list[range]:
    """Consecutive batches as long as a pass has at most `limit` tokens, padding included; one batch at least.

    Args:
        lengths: tokens of the samples of each batch.
        limit: tokens of a pass.
    """
    passes, start = list[range](), 0
    for end in range(1, len(lengths) + 1):
        following = [own for batch in lengths[start : end + 1] for own in batch]
        full = end == len(lengths) or end - start == BATCHES or len(following) * max(following) > limit
        if full:
            passes.append(range(start, end))
            start = end
    return passes
