"""What a training run opens: its order of samples, the backbone with experts attached, and the cache of vision features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dmole_cli.data.seeds import seed_for
from dmole_cli.methods.base import LoadedContext

if TYPE_CHECKING:
    from dmole_cli.backbones.vision_cache import VisionFeatureCache
    from dmole_cli.experts.expert import Expert
    from dmole_cli.experts.routed import RoutedExperts
    from dmole_cli.training.order import ShuffledBatches
    from dmole_cli.training.samples import Recipe


def training_order(context: LoadedContext, recipe: Recipe, transfer: Sequence[tuple[str, ...]]) -> ShuffledBatches:
    """Sample indices of every step."""
    from dmole_cli.backbones.inputs import Lengths
    from dmole_cli.training.order import shuffled_batches

    rows, visits = recipe.entries()
    return shuffled_batches(
        len(rows),
        recipe.batch_size,
        epochs=max(visits),
        seed=seed_for(context.settings.seed, context.task, "order"),
        lengths=Lengths(context.backbone.inputs, context.samples, with_answer=True),
        transfer=transfer,
        visits=visits,
        rows=rows,
    )


@contextmanager
def attached(
    context: LoadedContext, expert: Expert, transfer: Sequence[tuple[str, ...]], *, dropout: float
) -> Iterator[RoutedExperts]:
    """The backbone with the new expert and the transfer experts attached, or merged where the method merges."""
    from dmole_cli.experts.expert import load_expert
    from dmole_cli.experts.routed import RoutedExperts

    rules, backbone = context.method, context.backbone
    routed = RoutedExperts(backbone.model, backbone.modality_of, dropout=dropout)
    try:
        for name in sorted({name for names in transfer for name in names}):
            routed.add(name, load_expert(context.run.expert(name, rules.name)))
        routed.add(context.task, expert)
        if rules.merges:
            routed.merge(transfer[0])
        yield routed
    finally:
        routed.close()


@contextmanager
def vision_cache(context: LoadedContext, recipe: Recipe) -> Iterator[VisionFeatureCache]:
    """The cache of frozen vision features; of size 0 where no sample is visited twice."""
    from dmole_cli.backbones.vision_cache import VisionFeatureCache

    limit = context.settings.vision_cache * 2**20 if recipe.visited_again else 0
    cache = VisionFeatureCache(context.backbone, folder=context.run.root / "cache", limit=limit)
    try:
        yield cache
    finally:
        cache.close()
