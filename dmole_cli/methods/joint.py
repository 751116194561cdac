"""Joint: one LoRA on the shuffled union of all tasks, an upper bound of methods with a single adapter.

Paper: D-MoLE, arXiv 2506.11672, row "Joint-learning".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dmole_cli.methods.base import Entry, Method


class Joint(Method):
    """A LoRA trained on all tasks at once."""

    paper = "https://arxiv.org/abs/2506.11672"
    protocol = "joint"

    def trained_tasks(self, tasks: Sequence[str]) -> list[str]:
        """The last task, when the data of all tasks are available."""
        return [tasks[-1]]

    def data_shares(self, tasks: Sequence[str], task: str, options: Mapping[str, float]) -> dict[str, float]:
        """The training splits of all tasks."""
        return dict.fromkeys(tasks, 1.0)

    def entries(self, tasks: Sequence[str], unseen: Sequence[str]) -> list[Entry]:
        """The last stage, every task."""
        return [(len(tasks), task) for task in (*tasks, *unseen)]
