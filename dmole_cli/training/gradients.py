"""The gradient of a step whose samples are divided into micro-batches, and these among processes.

The gradient of the step's loss, which is the mean over its answer tokens, is the mean of the micro-batches' gradients weighted by
their answer tokens. The terms are added in the order of the micro-batches, in float32, whichever process has computed them, so
that any number of processes gives the same bits. A step of one micro-batch has the gradient of that micro-batch, unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dmole_cli.experts.flat import FlatExpert
from dmole_cli.processes import world

# Figures of a micro-batch, in this order: the cross-entropy of its answers (mean), the penalty, and the numbers of answer tokens,
# of tokens without padding, and of samples that were truncated.
LOSS, PENALTY, ANSWERS, TOKENS, TRUNCATED = range(5)
FIGURES = 5


class StepGradient:
    """Collects the gradients and figures of the micro-batches of one step, in rounds of one micro-batch per process.

    Args:
        expert: the one that trains; has the gradient of a micro-batch when it is added.
        count: number of micro-batches of the step.
    """

    def __init__(self, expert: FlatExpert, count: int) -> None:
        self._expert, self._count = expert, count
        self._sizes = [piece.values.numel() for piece in expert.pieces]
        self._added = 0
        self._figures: list[torch.Tensor] = []
        self._sum: list[torch.Tensor] = []
        self._reached = [False] * len(expert.matrices)

    def add(self, figures: torch.Tensor | None) -> None:
        """Add the micro-batch of each process in this round.

        Args:
            figures: of this process's micro-batch [FIGURES]; None if it has none in this round.
        """
        if world().size == 1:
            if figures is not None:
                self._add(*self._expert.gradient(), figures)
            return
        for part in world().gather(self._packed(figures)):
            if self._added == self._count:
                break
            flat, reached, found = part.split([sum(self._sizes), len(self._reached), FIGURES])
            self._add(flat.split(self._sizes), [value > 0 for value in reached.tolist()], found)

    def _add(self, gradient: Sequence[torch.Tensor], reached: Sequence[bool], figures: torch.Tensor) -> None:
        """Add one micro-batch; the numbers of a matrix without a gradient have no meaning."""
        self._added += 1
        self._figures.append(figures)
        if self._count == 1:
            self._sum, self._reached = list(gradient), list(reached)
            return
        if not self._sum:
            self._sum = [torch.zeros_like(part) for part in gradient]
        if not all(reached):
            gradient = self._expert.without(gradient, reached)
        for total, part in zip(self._sum, gradient, strict=True):
            # In place, and without a tensor of the gradient's size.
            total.addcmul_(part, figures[ANSWERS].to(part.device).expand_as(part))
        self._reached = [a or b for a, b in zip(self._reached, reached, strict=True)]

    def _packed(self, figures: torch.Tensor | None) -> torch.Tensor:
        """Gradient, whether each matrix has one, and the figures, in one float32 tensor."""
        home = self._expert.matrices[0].device
        if figures is None:
            return torch.zeros(sum(self._sizes) + len(self._reached) + FIGURES, device=home)
        gradient, reached = self._expert.gradient()
        present = torch.tensor([float(there) for there in reached], device=home)
        return torch.cat([*(part.to(home) for part in gradient), present, figures.to(home)])

    def finish(self, optimizer: torch.optim.Optimizer) -> torch.Tensor:
        """Set the gradients that the optimizer uses; the figures of the step [FIGURES]: means of both losses, and sums.

        A matrix that no micro-batch has reached (of a vision expert without images) has none, as in one batch.
        """
        figures = torch.stack(self._figures) if len(self._figures) > 1 else self._figures[0][None]
        answers = figures[:, ANSWERS]
        if self._count > 1:
            for part in self._sum:
                part.div_(answers.sum().to(part.device))
        homes = [piece.values.device for piece in self._expert.pieces]
        gradient = [part.to(home) for part, home in zip(self._sum, homes, strict=True)]
        self._expert.assign(gradient, self._reached, optimizer)
        if len(figures) == 1:
            return figures[0]
        means = (figures[:, [LOSS, PENALTY]] * answers[:, None]).sum(dim=0) / answers.sum()
        return torch.cat([means, figures[:, ANSWERS:].sum(dim=0)])
