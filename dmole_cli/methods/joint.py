"""Joint: one LoRA on the shuffled union of all tasks, the bound of methods that share one adapter.

Paper: D-MoLE, arXiv 2506.11672, row "Joint-learning".
"""

from __future__ import annotations

from collections.abc import Sequence

from dmole_cli.methods.base import Cell, Options

PAPER = "https://arxiv.org/abs/2506.11672"


def stages(tasks: Sequence[str]) -> list[str]:
    """When the last task is there, all of them are."""
    return [tasks[-1]]


def data(tasks: Sequence[str], task: str, options: Options) -> dict[str, float]:
    """All training splits, whole."""
    return dict.fromkeys(tasks, 1.0)


def cells(tasks: Sequence[str], unseen: Sequence[str]) -> list[Cell]:
    """The last stage, every task."""
    return [(len(tasks), task) for task in (*tasks, *unseen)]
