"""Several batches in one forward and backward pass of profiling, where the processor that launches its kernels limits a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from dmole_cli.backbones.backbone import Backbone, Encoded
from dmole_cli.data.sample import Sample

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
    return grouped([[lengths[row] for row in batch] for batch in batches], fits=backbone.launch_bound)


def grouped(lengths: Sequence[Sequence[int]], *, fits: Callable[[int], bool]) -> list[range]:
    """Consecutive batches as long as a pass fits; one batch at least.

    Args:
        lengths: tokens of the samples of each batch.
        fits: whether a pass may have so many tokens, padding included.
    """
    passes, start = list[range](), 0
    for end in range(1, len(lengths) + 1):
        following = [own for batch in lengths[start : end + 1] for own in batch]
        full = end == len(lengths) or end - start == BATCHES or not fits(len(following) * max(following))
        if full:
            passes.append(range(start, end))
            start = end
    return passes
