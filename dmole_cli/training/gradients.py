"""The gradient of a step whose samples are divided into micro-batches, and these among processes.

The gradient of the step's loss, which is the mean over its answer tokens, is the mean of the micro-batches' gradients weighted by
their answer tokens. The terms are added in the order of the micro-batches, in float32, whichever process has computed them, so
that any number of processes gives the same bits. A step of one micro-batch has the gradient of that micro-batch, unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dmole_cli.processes import world

# Figures of a micro-batch, in this order: the cross-entropy of its answers (mean), the penalty, and the numbers of answer tokens,
# of tokens without padding, and of samples that were truncated.
LOSS, PENALTY, ANSWERS, TOKENS, TRUNCATED = range(5)
FIGURES = 5


class StepGradient:
    """Collects the gradients and figures of the micro-batches of one step, in rounds of one micro-batch per process.

    Args:
        parameters: of the expert that trains; `grad` holds the gradient of a micro-batch when it is added, and the gradient of
            the step in the end.
        count: number of micro-batches of the step.
    """

    def __init__(self, parameters: Sequence[torch.Tensor], count: int) -> None:
        self._parameters, self._count = parameters, count
        self._added = 0
        self._figures: list[torch.Tensor] = []
        self._alone = count == 1 and world().size == 1
        self._sum: torch.Tensor | None = None
        self._present: torch.Tensor | None = None

    def add(self, figures: torch.Tensor | None) -> None:
        """Add the micro-batch of each process in this round.

        Args:
            figures: of this process's micro-batch [FIGURES]; None if it has none in this round.
        """
        if self._alone:
            self._figures = [] if figures is None else [figures]
            return
        sizes = [p.numel() for p in self._parameters]
        for part in world().gather(self._flat(figures)):
            if self._added == self._count:
                break
            self._added += 1
            own, present, found = part.split([sum(sizes), len(sizes), FIGURES])
            self._figures.append(found)
            if self._count == 1:
                self._sum, self._present = own, present
            elif self._sum is None or self._present is None:
                self._sum, self._present = own * found[ANSWERS], present
            else:
                # In place, and without a tensor of the gradient's size.
                self._sum.addcmul_(own, found[ANSWERS].expand_as(own))
                self._present = torch.maximum(self._present, present)

    def _flat(self, figures: torch.Tensor | None) -> torch.Tensor:
        """Gradients, whether each parameter has one, and the figures, in one float32 tensor."""
        grads = [p.grad for p in self._parameters]
        home = self._parameters[0].device
        if figures is None:
            return torch.zeros(sum(p.numel() for p in self._parameters) + len(grads) + FIGURES, device=home)
        parts = [
            (torch.zeros(p.numel(), device=home) if grad is None else grad.flatten().to(home))
            for p, grad in zip(self._parameters, grads, strict=True)
        ]
        present = torch.tensor([float(grad is not None) for grad in grads], device=home)
        return torch.cat([*parts, present, figures.to(home)])

    def finish(self) -> torch.Tensor:
        """Set the gradients of the parameters, and return the figures of the step [FIGURES]: means of both losses, and sums."""
        figures = torch.stack(self._figures)
        answers = figures[:, ANSWERS]
        if self._sum is not None and self._present is not None:
            flat = self._sum if self._count == 1 else self._sum / answers.sum()
            pieces = flat.split([p.numel() for p in self._parameters])
            for parameter, piece, there in zip(self._parameters, pieces, self._present.tolist(), strict=True):
                # A parameter that no micro-batch has reached (a vision expert without images) keeps none, as in one batch.
                parameter.grad = piece.view_as(parameter).to(parameter.device) if there else None
        if len(figures) == 1:
            return figures[0]
        means = (figures[:, [LOSS, PENALTY]] * answers[:, None]).sum(dim=0) / answers.sum()
        return torch.cat([means, figures[:, ANSWERS:].sum(dim=0)])
