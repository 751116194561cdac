"""Profiling the attention projections of a decoder of 160 million parameters: two batches of 2 x 256 tokens, a tenth answers.

Compared with the reference, where every weight of the model requires gradients, which accumulate in `.grad`, and the loss is
computed from the logits of all tokens. The scores are the same. There are two batches because a single one would not show the
memory of gradients that earlier batches have accumulated.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from dmole_cli.backbones.backbone import Backbone, Encoded
from dmole_cli.backbones.sites import Site, find_sites
from dmole_cli.profiling.passes import Pass
from dmole_cli.profiling.sensitivity import measure_sensitivity
from pipelines.bench._models import decoder, random_samples, with_labels
from pipelines.bench._timing import Row, counted, interleaved, peak_bytes, timed

SITES = r"language_model.*self_attn"
FULL = {"layers": 12, "hidden": 896, "inner": 2560, "heads": 14, "groups": 2, "words": 32_000}
TINY = {"layers": 2, "hidden": 16, "inner": 32, "heads": 2, "groups": 1, "words": 40}


def case(*, tiny: bool = False) -> tuple[Backbone, list[Site], list[list[Encoded]]]:
    """A decoder, its candidate sites and the batches to measure."""
    backbone = decoder(**(TINY if tiny else FULL))
    samples = random_samples(backbone, 4, text=6 if tiny else 230, answer=3 if tiny else 26)
    return backbone, find_sites(backbone.model, SITES), [samples[i : i + 2] for i in range(0, len(samples), 2)]


def reference(backbone: Backbone, sites: Sequence[Site], batches: Sequence[Sequence[Encoded]]) -> dict[str, float]:
    """Site -> score of the reference: norm of the accumulated gradient over the number of batches, weight plus bias."""
    model = backbone.model.requires_grad_(True)
    for batch in batches:
        model(**with_labels(backbone, batch), use_cache=False).loss.backward()
    parameters = {site.name: list(model.get_submodule(site.name).parameters()) for site in sites}
    scores = {name: sum(p.grad.norm().item() for p in group) / len(batches) for name, group in parameters.items()}
    model.zero_grad(set_to_none=True)
    model.requires_grad_(False)
    return scores


def ours(
    backbone: Backbone, sites: list[Site], batches: Sequence[list[Encoded] | Pass], **options: bool
) -> dict[str, float]:
    """The scores of the stage `profile`."""
    return {row.site: row.score for row in measure_sensitivity(backbone, sites, batches, **options)}


def compare(*, rounds: int | None = None, tiny: bool = False) -> list[Row]:
    """Time, and peak memory above the weights."""
    made = case(tiny=tiny)
    variants = {
        "reference": partial(reference, *made),
        "ours": partial(ours, *made),
        "checkpointing": partial(ours, *made, checkpointing=True),
        "per sample": partial(ours, *made, per_sample=True),
    }
    scores: dict[str, dict[str, float]] = {}
    peaks = {name: peak_bytes(lambda name=name: scores.update({name: variants[name]()})) for name in variants}
    worst = max(abs(scores[v][s] / scores["reference"][s] - 1) for v in variants for s in scores[v])
    times = interleaved(variants, rounds=rounds or (1 if tiny else 2), warm=True)
    rows = [counted("profile: largest relative difference of a score", worst, 1e-6)]
    for variant, time, memory in (("ours", 0.70, 0.50), ("checkpointing", 0.95, 0.15), ("per sample", None, None)):
        name = {"ours": "profile", "checkpointing": "profile --checkpointing", "per sample": "profile --per-sample"}[
            variant
        ]
        rows.append(timed(f"{name}: time over the reference's recipe", times, variant, "reference", time))
        rows.append(counted(f"{name}: peak memory over the reference's", peaks[variant] / peaks["reference"], memory))
    return rows
