"""Ablation v4 of D-MoLE: no allocator, experts on all sites at a lower rank. Paper: arXiv 2506.11672."""

from __future__ import annotations

from dmole_cli.methods._mixture import RoutedMixture


class V4(RoutedMixture):
    """D-MoLE with uniform placement."""
