"""Seq-FT with merging: after each task its LoRA becomes part of the backbone's weights, and a fresh one starts.

The form that D-MoLE's public code compares with (arXiv 2506.11672). The backbone on disk stays what it is: the merge is made anew
in memory, in single precision, from the experts' files.
"""

from __future__ import annotations

from dmole_cli.methods.base import all_experts, all_join, needs_earlier

PAPER = "https://arxiv.org/abs/2506.11672"
MERGES = True
needs = needs_earlier
joins = all_join
active = all_experts
