"""Zero-shot: the pretrained backbone on every task, without training. Paper: D-MoLE, arXiv 2506.11672, row "Zero-shot"."""

from __future__ import annotations

from collections.abc import Sequence

from dmole_cli.methods.base import Entry, Method


class ZeroShot(Method):
    """The pretrained backbone."""

    paper = "https://arxiv.org/abs/2506.11672"
    protocol = "zero-shot"

    def trained_tasks(self, tasks: Sequence[str]) -> list[str]:
        """None."""
        return []

    def entries(self, tasks: Sequence[str], unseen: Sequence[str]) -> list[Entry]:
        """Stage 0, every task."""
        return [(0, task) for task in (*tasks, *unseen)]
