"""O-LoRA's penalty: overlap of the row spaces of a new expert and of earlier ones (arXiv 2310.14152, as in its code)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dmole_cli.artifacts.expert import read_expert
from dmole_cli.methods.base import LoadedContext, Training

if TYPE_CHECKING:
    import torch

    from dmole_cli.experts.expert import Expert
    from dmole_cli.training.loop import Penalty, Step


def row_overlap(new: Expert, earlier: Sequence[torch.Tensor | None]) -> torch.Tensor:
    """Sum over sites of the absolute values of A_old A_newᵀ (scalar).

    It grows with the width, the rank and the number of sites, so its weight has to be chosen for each backbone.

    Args:
        new: the expert that trains.
        earlier: for each of its sites, in sorted order, the stacked A of earlier experts [ranks, in]; None without any.
    """
    import torch

    parts = [
        (old @ new.sites[site][0].t()).abs().sum()
        for site, old in zip(sorted(new.sites), earlier, strict=True)
        if old is not None
    ]
    return torch.stack([part.to(parts[0].device) for part in parts]).sum() if parts else torch.zeros(())


def overlap_penalty(context: LoadedContext, training: Training, *, weight: float) -> Penalty | None:
    """`weight` x `row_overlap` with the experts of all earlier tasks; None with weight 0 or at the first task."""
    import torch

    if not weight or not context.earlier:
        return None
    paths = [context.run.expert(task, context.method.name) for task in context.earlier]
    files = [read_expert(path) for path in paths]
    stacked: list[torch.Tensor | None] = []
    for site in sorted(training.expert.sites):
        rows = [file.sites[site][0] for file in files if site in file.sites]
        device = training.expert.sites[site][0].device
        stacked.append(torch.cat(rows).to(device) if rows else None)

    def penalty(step: Step) -> torch.Tensor:
        return weight * row_overlap(training.expert, stacked).to(step.logits.device)

    return penalty
