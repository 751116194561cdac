"""Finetune: for each task one LoRA from the pretrained backbone, tested on that task alone; the upper bound.

Paper: D-MoLE, arXiv 2506.11672, row "Finetune" (CoIN calls another quantity by this name: the diagonal of a sequence).
"""

from __future__ import annotations

from collections.abc import Sequence

from dmole_cli.methods.base import Cell, Routing

PAPER = "https://arxiv.org/abs/2506.11672"


def cells(tasks: Sequence[str], unseen: Sequence[str]) -> list[Cell]:
    """Each task after its own training, nothing else."""
    return [(stage, task) for stage, task in enumerate(tasks, start=1)]


def active(routing: Routing) -> list[tuple[str, ...]]:
    """The task's own adapter."""
    return [(routing.task,) for _ in routing.losses]
