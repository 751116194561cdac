"""The routed layer by the rank of its experts: time of a forward and backward pass over that at the smallest rank.

`dmole report --html` draws the rows of this benchmark.
"""

from __future__ import annotations

from pipelines.bench._timing import Row, interleaved, timed
from pipelines.bench.layer import PAIRS, case, routed

RANKS = (4, 8, 16, 32, 64, 128)
HIDDEN, ROUNDS = 896, 15


def compare(*, rounds: int | None = None, tiny: bool = False) -> list[Row]:
    """Time at every rank; the widths of the layer and the batch are those of `layer`."""
    made = {rank: case(16, tokens=4, rank=rank) if tiny else case(HIDDEN, rank=rank) for rank in RANKS}
    variants = {str(rank): routed(one, PAIRS) for rank, one in made.items()}
    times = interleaved(variants, rounds=rounds or (1 if tiny else ROUNDS))
    smallest = RANKS[0]
    return [
        timed(f"layer of width {HIDDEN}: rank {rank} over rank {smallest}", times, str(rank), str(smallest))
        for rank in RANKS[1:]
    ]
