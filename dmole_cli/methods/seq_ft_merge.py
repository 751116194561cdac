"""Seq-FT with merging: after each task its LoRA is merged into the backbone's weights, and a new one trains.

The baseline of D-MoLE's public code (arXiv 2506.11672). The backbone on disk is unchanged: each command merges the experts' files
in memory, in single precision.
"""

from __future__ import annotations

from dmole_cli.methods._every_expert import EveryExpert


class SeqFtMerge(EveryExpert):
    """A new LoRA per task, the earlier ones merged into the weights."""

    paper = "https://arxiv.org/abs/2506.11672"
    merges = True
