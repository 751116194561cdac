"""Replay: Seq-FT that also trains on a seeded subset of every earlier task's samples, the same subset at all later tasks.

Paper: Chaudhry et al., On Tiny Episodic Memories in Continual Learning, arXiv 1902.10486.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dmole_cli.methods.base import Method, Option


class Replay(Method):
    """Sequential fine-tuning with replayed samples."""

    paper = "https://arxiv.org/abs/1902.10486"
    options = {"replay_ratio": Option(0.1, "Share of each earlier task's training split that is replayed.", le=1.0)}
    continues = True

    def data_shares(self, tasks: Sequence[str], task: str, options: Mapping[str, float]) -> dict[str, float]:
        """The task's own split, and `replay_ratio` of each earlier one."""
        earlier = list(tasks)[: list(tasks).index(task)]
        return {task: 1.0, **dict.fromkeys(earlier, options["replay_ratio"])}
