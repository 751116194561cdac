"""O-LoRA: a new LoRA per task whose row space keeps away from those of the earlier ones; all of them answer.

Paper: Wang et al., Orthogonal Subspace Learning for Language Model Continual Learning, arXiv 2310.14152.
"""

from __future__ import annotations

from dmole_cli.methods._overlap import overlap_penalty
from dmole_cli.methods.base import LoadedStage, Penalty, Training, all_experts, all_join, needs_earlier

PAPER = "https://arxiv.org/abs/2310.14152"
OPTIONS = {"weight": 0.5}  # lambda_1, of the sum over all sites
needs = needs_earlier
joins = all_join
active = all_experts


def penalty(stage: LoadedStage, training: Training) -> Penalty | None:
    """lambda_1 x the sum over sites of |A_old A_newᵀ|."""
    return overlap_penalty(stage, training, weight=stage.options["weight"])
