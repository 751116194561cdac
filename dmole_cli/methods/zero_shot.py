"""Zero-shot: the pretrained backbone on every task, nothing trained. Paper: D-MoLE, arXiv 2506.11672, row "Zero-shot"."""

from __future__ import annotations

from collections.abc import Sequence

from dmole_cli.methods.base import Cell

PAPER = "https://arxiv.org/abs/2506.11672"


def stages(tasks: Sequence[str]) -> list[str]:
    """Nothing trains."""
    return []


def cells(tasks: Sequence[str], unseen: Sequence[str]) -> list[Cell]:
    """Stage 0, every task."""
    return [(0, task) for task in (*tasks, *unseen)]
