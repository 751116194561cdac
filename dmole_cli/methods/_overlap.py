"""O-LoRA's penalty: how far the row spaces of a new expert and of earlier ones overlap (arXiv 2310.14152, as in its code)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dmole_cli.artifacts.expert import read_expert
from dmole_cli.experts.expert import Expert
from dmole_cli.methods.base import LoadedStage, Penalty, Step, Training


def row_overlap(new: Expert, earlier: Sequence[torch.Tensor | None]) -> torch.Tensor:
    """Sum over sites of the absolute values of A_old A_newᵀ (scalar).

    It grows with the width, the rank and the number of sites, so that its weight has to be chosen for each backbone.

    Args:
        new: the expert that trains.
        earlier: for each of its sites, in sorted order, the stacked A of earlier experts [ranks, in]; None without any.
    """
    parts = [
        (old @ new.sites[site][0].t()).abs().sum()
        for site, old in zip(sorted(new.sites), earlier, strict=True)
        if old is not None
    ]
    return torch.stack(parts).sum() if parts else torch.zeros(())


def overlap_penalty(stage: LoadedStage, training: Training, *, weight: float) -> Penalty | None:
    """`weight` x `row_overlap` with the method's experts of all earlier tasks; None where there is nothing to add."""
    if not weight or not stage.earlier:
        return None
    paths = [stage.run.expert(task, stage.method.name) for task in stage.earlier]
    files = [read_expert(path, hint=f"train it first: {path.stem}") for path in paths]
    stacked: list[torch.Tensor | None] = []
    for site in sorted(training.expert.sites):
        rows = [file.sites[site][0] for file in files if site in file.sites]
        device = training.expert.sites[site][0].device
        stacked.append(torch.cat(rows).to(device) if rows else None)

    def penalty(step: Step) -> torch.Tensor:
        return weight * row_overlap(training.expert, stacked).to(step.logits.device)

    return penalty
