"""Seq-FT: one LoRA on all candidate sites, fine-tuned sequentially on every task; the naive baseline.

Paper: CoIN, arXiv 2403.08350, row of sequential fine-tuning.
"""

from __future__ import annotations

from dmole_cli.methods.base import Method


class SeqFt(Method):
    """Sequential fine-tuning of one LoRA."""

    paper = "https://arxiv.org/abs/2403.08350"
    continues = True
