"""Ablation v4 of D-MoLE: neither placement nor routers, one adapter on all sites. Paper: arXiv 2506.11672.

The authors explained to their reviewers that the allocator places experts *and* routes inputs, so without it one adapter is
fine-tuned sequentially. The curriculum stays: the modalities share the budget by their difficulty, as in D-MoLE. One adapter
has one shape, which the first task's difficulty decides.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmole_cli.methods.base import LoadedContext, Method, TaskContext, candidate_sites

if TYPE_CHECKING:
    from dmole_cli.settings.model import Settings


class V4(Method):
    """D-MoLE without its allocator: Seq-FT with the modalities' shares."""

    paper = "https://arxiv.org/abs/2506.11672"
    continues = True
    uses_profile = True

    def inputs(self, context: TaskContext) -> list[Path]:
        """The profile of the first task, which decides the shares of the modalities."""
        return [] if context.earlier else [context.run.profile(context.task)]

    def header_settings(self, settings: Settings) -> dict[str, Any]:
        """Those of a uniform placement, and those of the shares."""
        chosen = settings.allocate
        return {**super().header_settings(settings), "vision_floor": chosen.vision_floor, "score": chosen.score}

    def placement(self, context: LoadedContext) -> dict[str, int]:
        """Every candidate site, in each modality at the rank that the modality's share of the budget affords.

        Raises:
            DmoleError: the profile is missing or damaged, has other sites, or the budget is smaller than rank 1 on all sites.
        """
        from dmole_cli.allocation.modality_ranks import modality_ranks
        from dmole_cli.artifacts.errors import StaleArtifact
        from dmole_cli.artifacts.profile import read_profile

        sites, budget = candidate_sites(context)
        path, chosen = context.run.profile(context.task), context.settings.allocate
        names = {site.name for site in sites}
        rows = [row for row in read_profile(path)[0] if row.site in names]
        if len(rows) < len(names):
            raise StaleArtifact(path, "the candidate sites are others now")
        widths, scores = dict[str, int](), dict[str, float]()
        for row in rows:
            widths[row.modality] = widths.get(row.modality, 0) + row.in_features + row.out_features
            scores[row.modality] = scores.get(row.modality, 0.0) + getattr(row, chosen.score)
        ranks = modality_ranks(widths, scores, budget_parameters=budget, vision_floor=chosen.vision_floor)
        return {site.name: ranks[site.modality] for site in sites}
