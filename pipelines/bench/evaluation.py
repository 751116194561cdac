"""Generating answers with the embedded backbone for batches of 64 samples with mixed routes, against one sample at a time.

Both run the loop of `evaluate`: collate, route, generate. Samples are encoded beforehand, which a worker process does otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence

from dmole_cli.backbones.backbone import Backbone, Encoded
from dmole_cli.data.card import load_card
from dmole_cli.experts.routed import RoutedExperts
from dmole_cli.inference.decoding import generate
from pipelines.bench._models import attached
from pipelines.bench._stream import embedded, slight_expert, some_samples
from pipelines.bench._timing import Row, Variant, counted, interleaved, timed

TASKS = ("easyvqa", "emoji")
SETS = [(), ("one",), ("one", "two"), ("two",)]
BATCH = 64  # the default of `evaluate`


def answers(
    backbone: Backbone, routed: RoutedExperts, task: str, encoded: Sequence[Encoded], *, batch: int
) -> list[str]:
    """Greedy answers in order; sample i has the route `SETS[i % 4]`."""
    limits = load_card(task).generation
    out = []
    for start in range(0, len(encoded), batch):
        inputs, rows = backbone.collate(encoded[start : start + batch], left=True)
        sets = [SETS[i % len(SETS)] for i in range(start, min(start + batch, len(encoded)))]
        with routed.route(sets, rows=rows):
            out += generate(
                backbone,
                inputs,
                max_new_tokens=limits.max_new_tokens,
                min_new_tokens=limits.min_new_tokens,
                leave=routed.keep,
            )
    return out


def variants(backbone: Backbone, task: str, count: int) -> dict[str, Variant]:
    """The same samples in batches and one at a time."""
    samples = some_samples(task, "validation", count)
    lengths = backbone.lengths(samples, with_answer=False)
    order = sorted(range(len(samples)), key=lengths.__getitem__)  # the order of `evaluate`
    encoded = [backbone.encode(samples[i], with_answer=False) for i in order]
    routed = attached(backbone, {"one": slight_expert(backbone, seed=1), "two": slight_expert(backbone, seed=2)})
    return {
        name: lambda size=size: answers(backbone, routed, task, encoded, batch=size)
        for name, size in (("batches", BATCH), ("one by one", 1))
    }


def compare(*, rounds: int | None = None, tiny: bool = False) -> list[Row]:
    """Samples per second, answers that differ, and computed over needed decoding rows."""
    rows = []
    for task in TASKS:
        backbone = embedded()
        made = variants(backbone, task, 4 if tiny else BATCH)
        generated = {name: function() for name, function in made.items()}
        differ = sum(a != b for a, b in zip(*generated.values(), strict=True))
        backbone.counts.clear()
        made["batches"]()
        computed, needed = backbone.counts["decode_rows"], backbone.counts["decode_rows_needed"]
        times = interleaved(made, rounds=rounds or (1 if tiny else 3), warm=True)
        name = f"evaluating {task}"
        rows += [
            timed(f"{name}: samples per second, over one at a time", times, "batches", "one by one", 4, at_least=True),
            counted(f"{name}: answers that differ from those", differ, 0),
            counted(f"{name}: decoding rows computed over needed", computed / needed, 1.3),
        ]
    return rows
