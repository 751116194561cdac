"""Replay: Seq-FT that sees a seeded sample of every earlier task's data again, the same one at every later stage.

Paper: Chaudhry et al., On Tiny Episodic Memories in Continual Learning, arXiv 1902.10486.
"""

from __future__ import annotations

from collections.abc import Sequence

from dmole_cli.methods.base import Options, task_before

PAPER = "https://arxiv.org/abs/1902.10486"
OPTIONS = {"replay_ratio": 0.1}  # of each earlier task's training split
RULES = {"replay_ratio": (lambda v: v <= 1, "from 0 to 1")}
start = task_before


def data(tasks: Sequence[str], task: str, options: Options) -> dict[str, float]:
    """The task's own split, and a share of those before it."""
    earlier = list(tasks)[: list(tasks).index(task)]
    return {task: 1.0, **dict.fromkeys(earlier, options["replay_ratio"])}
