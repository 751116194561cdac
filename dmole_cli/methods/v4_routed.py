"""Ablation of D-MoLE: no allocator, experts on all sites at a lower rank; routers choose them. Paper: arXiv 2506.11672.

The paper's v4 is "without the allocator". Its authors explained to their reviewers that the allocator places experts *and* routes
inputs; this is the reading in which only the placement goes. `v4` is the other one.
"""

from __future__ import annotations

from dmole_cli.methods._mixture import RoutedMixture


class V4Routed(RoutedMixture):
    """D-MoLE with uniform placement."""
