"""LwF-LoRA: Seq-FT that keeps its answers' distribution near that of the model before the task.

L = CE + weight x T^2 x KL(p_old || p_new), over the answer tokens of the current task's data. Paper: Li and Hoiem, Learning
without Forgetting, arXiv 1606.09282.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from dmole_cli.experts.expert import Expert
from dmole_cli.methods.base import LoadedStage, Penalty, Step, Training, task_before

PAPER = "https://arxiv.org/abs/1606.09282"
OPTIONS = {"weight": 1.0, "temperature": 2.0}
RULES = {"temperature": (lambda v: v > 0, "over 0")}
start = task_before

_TEACHER = "the model before this task"


def penalty(stage: LoadedStage, training: Training) -> Penalty | None:
    """Distil from a frozen copy of the adapter; at the first task the model before is the pretrained backbone."""
    weight, temperature = stage.options["weight"], stage.options["temperature"]
    before = (_TEACHER,) if stage.method.start(stage.config.tasks, stage.task) else ()
    if before:
        sites = {site: (a.detach().clone(), b.detach().clone()) for site, (a, b) in training.expert.sites.items()}
        training.routed.add(_TEACHER, Expert(sites, training.expert.scale))
    backbone = stage.backbone

    def penalty(step: Step) -> torch.Tensor:
        with torch.no_grad(), training.routed.route([before] * step.samples, rows=step.rows):
            old = backbone.answer_logits(step.inputs)[0]
        return weight * _distillation(old, step.logits, temperature=temperature)

    return penalty if weight else None


def _softened(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    return F.log_softmax(logits.float() / temperature, dim=-1)


def _distillation(old: torch.Tensor, new: torch.Tensor, *, temperature: float) -> torch.Tensor:
    """T^2 x KL(p_old || p_new), mean over tokens (scalar), of logits [tokens, vocabulary] at the same positions."""
    softened = _softened(new, temperature), _softened(old, temperature)
    return temperature**2 * F.kl_div(*softened, log_target=True, reduction="batchmean")
