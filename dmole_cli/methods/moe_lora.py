"""MoELoRA: a dense mixture of LoRA experts at every site, gated per token, trained on through the whole sequence.

Paper: CoIN, arXiv 2403.08350. Nothing is frozen, no loss balances the load; the rank that the budget allows is split over the
experts. Where it allows less than rank 1 for each of them, there are fewer experts.
"""

from __future__ import annotations

import torch

from dmole_cli.errors import DmoleError
from dmole_cli.experts.expert import Expert, new_expert
from dmole_cli.methods.base import LoadedStage, candidate_sites, task_before

PAPER = "https://arxiv.org/abs/2403.08350"
OPTIONS = {"experts": 8.0}
RULES = {"experts": (lambda v: v >= 1, "1 or more")}
start = task_before


def fresh(stage: LoadedStage, generator: torch.Generator) -> Expert:
    """Parts of equal rank at every candidate site, and a gate that starts by weighing them all alike."""
    sites, budget = candidate_sites(stage)
    widths = sum(site.in_features + site.out_features for site in sites)
    gates = sum(site.in_features for site in sites)
    parts = min(int(stage.options["experts"]), budget // (widths + gates))
    if parts < 1:
        message = f"a budget of {budget} parameters does not hold one expert of rank 1 with its gate at every site"
        raise DmoleError(message, f"raise --budget to at least params:{widths + gates}")
    rank = (budget // parts - gates) // widths
    shapes = {site.name: (parts * rank, site.in_features, site.out_features) for site in sites}
    device = stage.backbone.device
    expert = new_expert(shapes, scale=stage.method.scale(stage), generator=generator, device=device)
    expert.gates = {s.name: torch.zeros(parts, s.in_features, device=device, requires_grad=True) for s in sites}
    return expert
