"""Seq-FT: one LoRA on all candidate sites is trained on through the whole sequence; the naive baseline.

Paper: CoIN, arXiv 2403.08350, where it is the sequential fine-tuning row.
"""

from __future__ import annotations

from dmole_cli.methods.base import task_before

PAPER = "https://arxiv.org/abs/2403.08350"
start = task_before
