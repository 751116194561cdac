"""EWC-LoRA: Seq-FT with a quadratic penalty on changes of parameters that are important for earlier tasks.

L = CE + (weight / 2) sum_j F_j (theta_j - theta*_j)^2; F is the mean squared gradient of single samples after a task was
learned, added up over the tasks (online). Papers: Kirkpatrick et al., arXiv 1612.00796; Schwarz et al., arXiv 1805.06370.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from dmole_cli.data.seeds import seed_for
from dmole_cli.methods.base import LoadedContext, Method, Option, Training

if TYPE_CHECKING:
    import torch

    from dmole_cli.training.loop import Penalty, Step


class EwcLora(Method):
    """Sequential fine-tuning with elastic weight consolidation."""

    paper = "https://arxiv.org/abs/1612.00796"
    options = {
        "weight": Option(1000.0, "Weight of the quadratic penalty."),
        "fisher_samples": Option(256.0, "Number of samples that estimate the Fisher information.", ge=1.0, whole=True),
    }
    continues = True
    has_memory = True

    def penalty(self, context: LoadedContext, training: Training) -> Penalty | None:
        """Squared distance to the parameters after the previous task, weighted by the Fisher information in memory."""
        weight = context.options["weight"]
        if not training.memory or not weight:
            return None
        now = _named(training)
        anchor = {name: matrix.detach().clone() for name, matrix in now.items()}
        fisher = {name: training.memory[name].to(matrix.device) for name, matrix in now.items()}

        def penalty(step: Step) -> torch.Tensor:
            return weight / 2 * _quadratic(now, anchor, fisher).to(step.logits.device)

        return penalty

    def remember(self, context: LoadedContext, training: Training) -> dict[str, torch.Tensor]:
        """The diagonal of the Fisher information: the memory plus this task's, estimated on a seeded subset of its samples."""
        import torch

        from dmole_cli.backbones.batches import encoded_batches

        settings, backbone, samples = context.settings, context.backbone, context.samples
        generator = torch.Generator().manual_seed(seed_for(settings.seed, context.task, "fisher"))
        rows = torch.randperm(len(samples), generator=generator)[: int(context.options["fisher_samples"])].tolist()
        now = _named(training)
        total = {name: torch.zeros_like(matrix) for name, matrix in now.items()}
        batches, limit = [[row] for row in rows], settings.train.max_length
        prepared = encoded_batches(
            backbone, samples, batches, with_answer=True, max_length=limit, workers=settings.workers
        )
        for encoded in prepared:
            inputs, image_rows = backbone.collate(encoded, left=False)
            with training.routed.route([(context.task,)], rows=image_rows):
                loss = backbone.answer_loss(inputs)
            grads = torch.autograd.grad(loss, list(now.values()), materialize_grads=True)
            for name, grad in zip(now, grads, strict=True):
                total[name] += grad**2
        return {name: total[name] / len(rows) + training.memory.get(name, 0.0) for name in now}


def _named(training: Training) -> dict[str, torch.Tensor]:
    """A and B of every site of the expert that trains, by name."""
    return {
        f"{site}.{name}": matrix
        for site, pair in sorted(training.expert.sites.items())
        for name, matrix in zip(("A", "B"), pair, strict=True)
    }


def _quadratic(
    now: Mapping[str, torch.Tensor], anchor: Mapping[str, torch.Tensor], fisher: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """Sum over all parameters of F (theta - theta*)^2 (scalar)."""
    import torch

    parts = [(fisher[name] * (now[name] - anchor[name]) ** 2).sum() for name in sorted(now)]
    return torch.stack([part.to(parts[0].device) for part in parts]).sum()
