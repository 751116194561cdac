"""Routing one sample among the routers of 200 tasks, against generating one answer.

Routing as in `evaluate`: the reconstruction errors of a whole split for each router, then the choice per sample; the time is
divided by the number of samples. Answers are generated one sample at a time. First on the model of `step` with sixteen tokens
per answer, then on the embedded backbone, whose shortest answers have one token and which is smaller than 200 routers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dmole_cli.backbones.backbone import Backbone, Encoded
from dmole_cli.data.card import load_card
from dmole_cli.inference.decoding import generate
from dmole_cli.routing.autoencoder import Autoencoder
from dmole_cli.routing.rules import top_candidates
from pipelines.bench._models import random_samples
from pipelines.bench._stream import embedded, some_samples
from pipelines.bench._timing import Row, Variant, interleaved, timed
from pipelines.bench.step import case

TASKS = ("emoji", "easyvqa")
ROUTERS, SPLIT, ANSWERS, TOKENS = 200, 300, 12, 16


def route(
    features: torch.Tensor, routers: Sequence[Autoencoder], thresholds: Sequence[float], *, most: int = 2
) -> list[list[int]]:
    """The nearest tasks whose threshold accepts a sample, for features [samples, width]."""
    with torch.no_grad():
        columns = [router.losses(features).tolist() for router in routers]
    return [top_candidates(row, thresholds, most=most) for row in zip(*columns, strict=True)]


def routing(backbone: Backbone, samples: Sequence[Encoded], *, routers: int, split: int) -> Variant:
    """Route a split that repeats the features of some samples, among untrained routers."""
    torch.manual_seed(0)
    some = backbone.features(samples)
    features = some.repeat(-(-split // len(some)), 1)[:split]
    made = [Autoencoder(features.shape[1]).requires_grad_(False) for _ in range(routers)]
    middle = torch.stack([router.losses(features).mean() for router in made]).quantile(0.05).item()
    return lambda: route(features, made, [middle] * routers)  # about one in twenty accepts a sample


def answering(backbone: Backbone, samples: Sequence[Encoded], *, most: int, least: int) -> Variant:
    """Generate answers one sample at a time."""

    def run() -> list[str]:
        inputs = [backbone.collate([sample], left=True)[0] for sample in samples]
        return [generate(backbone, i, max_new_tokens=most, min_new_tokens=least)[0] for i in inputs]

    return run


def compare(*, rounds: int | None = None, tiny: bool = False) -> list[Row]:
    """Time per sample."""
    routers, split, answers = (4, 2, 1) if tiny else (ROUTERS, SPLIT, ANSWERS)
    model = case(tiny=tiny).backbone
    drawn = random_samples(model, 1 if tiny else 4, text=4 if tiny else 40, answer=0, tiles=2)
    rounds = rounds or (1 if tiny else 5)
    times = interleaved(
        {
            "routing": routing(model, drawn, routers=routers, split=split),
            "answer": answering(model, drawn, most=2 if tiny else TOKENS, least=2 if tiny else TOKENS),
        },
        rounds=rounds,
    )
    each = {"routing": [t / split for t in times["routing"]], "answer": [t / len(drawn) for t in times["answer"]]}
    name = f"routing a sample among {ROUTERS} routers over one answer"
    rows = [timed(f"{name}, 47 M parameters", each, "routing", "answer", 0.01)]

    backbone = embedded()
    variants = {}
    for task in TASKS:
        samples = [backbone.encode(s, with_answer=False) for s in some_samples(task, "validation", answers)]
        limits = load_card(task).generation
        variants[task] = answering(backbone, samples, most=limits.max_new_tokens, least=limits.min_new_tokens)
    variants["routing"] = routing(backbone, samples, routers=routers, split=split)
    times = interleaved(variants, rounds=rounds)
    each = {n: [t / (split if n == "routing" else answers) for t in row] for n, row in times.items()}
    return [*rows, *(timed(f"{name}, embedded backbone, {task}", each, "routing", task, 0.01) for task in TASKS)]
