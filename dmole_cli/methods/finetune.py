"""Finetune: for each task one LoRA from the pretrained backbone, evaluated on that task alone; an upper bound.

Paper: D-MoLE, arXiv 2506.11672, row "Finetune" (CoIN calls another quantity by this name: the diagonal of the score matrix).
"""

from __future__ import annotations

from collections.abc import Sequence

from dmole_cli.methods.base import Entry, Method, Routing


class Finetune(Method):
    """A LoRA per task, independent of all other tasks."""

    paper = "https://arxiv.org/abs/2506.11672"
    protocol = "per-task"

    def entries(self, tasks: Sequence[str], unseen: Sequence[str]) -> list[Entry]:
        """Each task after its own training."""
        return [(stage, task) for stage, task in enumerate(tasks, start=1)]

    def active_experts(self, routing: Routing) -> list[tuple[str, ...]]:
        """The expert of the samples' own task."""
        return [(routing.task,) for _ in routing.losses]
