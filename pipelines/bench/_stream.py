"""The embedded backbone and samples of the built-in stream, for comparisons in which real answers and lengths matter."""

from __future__ import annotations

from dmole_cli.backbones.backbone import Backbone
from dmole_cli.backbones.loading import load_backbone
from dmole_cli.backbones.sites import find_sites
from dmole_cli.data.loading import load_card, samples
from dmole_cli.data.sample import Sample
from dmole_cli.experts.expert import Expert
from pipelines.bench._models import random_expert


def embedded() -> Backbone:
    """The backbone that comes with the package."""
    return load_backbone("embedded")


def some_samples(task: str, split: str, count: int) -> list[Sample]:
    """The first samples of a split.

    Raises:
        DmoleError: the packages of the stream are not installed; it says how to install them.
    """
    return samples(load_card(task), split)[:count]


def slight_expert(backbone: Backbone, *, seed: int) -> Expert:
    """An expert on all attention projections that changes answers without making nonsense of them."""
    expert = random_expert(backbone.model, [s.name for s in find_sites(backbone.model, "attention")], seed=seed)
    return Expert({site: (a, 0.2 * b) for site, (a, b) in expert.sites.items()}, expert.scale)
