"""EWC-LoRA: Seq-FT whose parameters are held where earlier tasks need them.

L = CE + (weight / 2) sum_j F_j (theta_j - theta*_j)^2; F is the mean squared gradient of single samples after a task was
learned, added up over the tasks (online). Papers: Kirkpatrick et al., arXiv 1612.00796; Schwarz et al., arXiv 1805.06370.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from dmole_cli.backbones.batches import encoded_batches
from dmole_cli.data.seeds import seed_for
from dmole_cli.methods.base import LoadedStage, Penalty, Step, Training, task_before

PAPER = "https://arxiv.org/abs/1612.00796"
OPTIONS = {"weight": 1000.0, "fisher_samples": 256.0}
RULES = {"fisher_samples": (lambda v: v >= 1, "1 or more")}
start = task_before


def _named(training: Training) -> dict[str, torch.Tensor]:
    return {
        f"{site}.{name}": matrix
        for site, pair in sorted(training.expert.sites.items())
        for name, matrix in zip(("A", "B"), pair, strict=True)
    }


def penalty(stage: LoadedStage, training: Training) -> Penalty | None:
    """Hold the parameters near where the task before left them, each as strongly as the earlier tasks need it."""
    weight = stage.options["weight"]
    if not training.memory or not weight:
        return None
    now = _named(training)
    anchor = {name: matrix.detach().clone() for name, matrix in now.items()}
    fisher = {name: training.memory[name].to(matrix.device) for name, matrix in now.items()}

    def penalty(step: Step) -> torch.Tensor:
        return weight / 2 * _quadratic(now, anchor, fisher).to(step.logits.device)

    return penalty


def _quadratic(
    now: Mapping[str, torch.Tensor], anchor: Mapping[str, torch.Tensor], fisher: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """Sum over all parameters of F (theta - theta*)^2 (scalar)."""
    return torch.stack([(fisher[name] * (now[name] - anchor[name]) ** 2).sum() for name in sorted(now)]).sum()


def remember(stage: LoadedStage, training: Training) -> dict[str, torch.Tensor]:
    """The Fisher information's diagonal so far: what was remembered, and this task's on a seeded sample of its data."""
    generator = torch.Generator().manual_seed(seed_for(stage.config.seed, stage.task, "fisher"))
    rows = torch.randperm(len(stage.samples), generator=generator)[: int(stage.options["fisher_samples"])].tolist()
    now = _named(training)
    total = {name: torch.zeros_like(matrix) for name, matrix in now.items()}
    batches = [[row] for row in rows]
    limit = stage.config.train.max_length
    for encoded in encoded_batches(stage.backbone, stage.samples, batches, with_answer=True, max_length=limit):
        inputs, picture_rows = stage.backbone.collate(encoded, left=False)
        with training.routed.route([(stage.task,)], rows=picture_rows):
            loss = stage.backbone.answer_loss(inputs)
        for name, grad in zip(now, torch.autograd.grad(loss, list(now.values()), materialize_grads=True), strict=True):
            total[name] += grad**2
    return {name: total[name] / len(rows) + training.memory.get(name, 0.0) for name in now}
