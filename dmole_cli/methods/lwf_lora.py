"""LwF-LoRA: Seq-FT whose predictions are distilled from the model as it was before the task.

L = CE + weight x T^2 x KL(p_old || p_new), over the answer tokens of the current task's data. Paper: Li and Hoiem, Learning
without Forgetting, arXiv 1606.09282.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dmole_cli.methods.base import LoadedContext, Method, Option, Training

if TYPE_CHECKING:
    import torch

    from dmole_cli.training.loop import Penalty, Step

_TEACHER = "the model before this task"


class LwfLora(Method):
    """Sequential fine-tuning with distillation."""

    paper = "https://arxiv.org/abs/1606.09282"
    options = {
        "weight": Option(1.0, "Weight of the distillation loss."),
        "temperature": Option(2.0, "Temperature T of both distributions.", gt=0.0),
    }
    continues = True

    def penalty(self, context: LoadedContext, training: Training) -> Penalty | None:
        """Distillation from a frozen copy of the adapter; at the first task from the pretrained backbone."""
        import torch

        from dmole_cli.experts.expert import Expert

        weight, temperature = context.options["weight"], context.options["temperature"]
        teacher = (_TEACHER,) if self.previous_task(context.settings.tasks, context.task) else ()
        if teacher:
            sites = {site: (a.detach().clone(), b.detach().clone()) for site, (a, b) in training.expert.sites.items()}
            training.routed.add(_TEACHER, Expert(sites, training.expert.scale))
        backbone = context.backbone

        def penalty(step: Step) -> torch.Tensor:
            with torch.no_grad(), training.routed.route([teacher] * step.samples, rows=step.rows):
                old = backbone.answer_logits(step.inputs)[0]
            return weight * _distillation(old, step.logits, temperature=temperature)

        return penalty if weight else None


def _distillation(old: torch.Tensor, new: torch.Tensor, *, temperature: float) -> torch.Tensor:
    """T^2 x KL(p_old || p_new), mean over tokens (scalar), of logits [tokens, vocabulary] at the same positions."""
    from torch.nn import functional as F

    log_p_new, log_p_old = (F.log_softmax(logits.float() / temperature, dim=-1) for logits in (new, old))
    return temperature**2 * F.kl_div(log_p_new, log_p_old, log_target=True, reduction="batchmean")
