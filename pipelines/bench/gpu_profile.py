"""On a GPU: profiling the attention projections of a random 2-billion InternVL in bfloat16, two batches of 4 samples of a tile.

Compared with the official recipe: every weight requires gradients, which accumulate in `.grad`, and the loss is computed from the
logits of all tokens. The stage `profile` computes both batches in one pass; the variants with a pass for each, with and without
checkpointing, show what that saves.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from dmole_cli.backbones.sites import find_sites
from dmole_cli.profiling.passes import grouped, in_passes
from pipelines.bench._gpu import ANSWER, TEXT, all_cores, device_for, measure, two_billion
from pipelines.bench._models import random_samples
from pipelines.bench._timing import Row, Variant
from pipelines.bench.profiling import ours, reference

TIME, MEMORY = 0.70, 0.30
WORDS = {
    "ours": "profile",
    "apart": "profile, a pass for each batch",
    "checkpointing": "profile --checkpointing, a pass for each batch",
}


def compare(*, rounds: int | None = None, tiny: bool = False) -> Iterator[Row]:
    """Time and peak memory, and the largest difference of a score."""
    device = device_for(tiny=tiny)
    if device is None:
        return
    backbone = two_billion(device, tiny=tiny)
    text, answer = (4, 2) if tiny else (TEXT, ANSWER)
    batches = [random_samples(backbone, 4, text=text, answer=answer, tiles=1, seed=i) for i in range(2)]
    sites = find_sites(backbone.model, "attention")
    parts = (backbone, sites, batches)
    lengths = [[len(sample.tokens) for sample in batch] for batch in batches]
    passes = list(in_passes(batches, grouped(lengths, fits=backbone.launch_bound)))
    scores: dict[str, dict[str, float]] = {}

    def kept(name: str, run: partial) -> Variant:
        return lambda: scores.update({name: run()})

    makers = {
        "official": lambda: kept("official", partial(reference, *parts)),
        "ours": lambda: kept("ours", partial(ours, backbone, sites, passes)),
        "apart": lambda: kept("apart", partial(ours, *parts)),
        "checkpointing": lambda: kept("checkpointing", partial(ours, *parts, checkpointing=True)),
    }
    with all_cores(device):
        found = measure(makers, device=device, rounds=rounds or (1 if tiny else 5))
    for variant, words in WORDS.items():
        time, memory = (TIME, MEMORY) if variant == "ours" else (None, None)
        yield found.time(f"gpu {words}: time over the official recipe's", variant, "official", time)
        yield found.peak(f"gpu {words}: peak memory over the official recipe's", variant, "official", memory)
        yield found.milliseconds(f"gpu {words}", variant)
        yield found.gibibytes(f"gpu {words}", variant)
    yield found.figure(
        "gpu profile: largest relative difference of a score, in bfloat16",
        ("ours", "official"),
        lambda one, other: max(abs(scores[one][site] / scores[other][site] - 1) for site in scores[one]),
    )
