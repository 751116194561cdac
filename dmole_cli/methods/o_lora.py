"""O-LoRA: a new LoRA per task, penalised for the overlap of its row space with those of the earlier ones; all are active.

Paper: Wang et al., Orthogonal Subspace Learning for Language Model Continual Learning, arXiv 2310.14152.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dmole_cli.methods._every_expert import EveryExpert
from dmole_cli.methods._overlap import overlap_penalty
from dmole_cli.methods.base import LoadedContext, Option, Training

if TYPE_CHECKING:
    from dmole_cli.training.loop import Penalty


class OLora(EveryExpert):
    """A LoRA per task with orthogonal row spaces."""

    paper = "https://arxiv.org/abs/2310.14152"
    options = {"weight": Option(0.5, "Weight of the penalty (lambda_1 of the paper), of the sum over all sites.")}

    def penalty(self, context: LoadedContext, training: Training) -> Penalty | None:
        """lambda_1 x the sum over sites of |A_old A_newᵀ|."""
        return overlap_penalty(context, training, weight=context.options["weight"])
