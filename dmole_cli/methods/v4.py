"""Ablation v4 of D-MoLE: no allocator, experts on all sites at a lower rank. Paper: D-MoLE, arXiv 2506.11672."""

from __future__ import annotations

from typing import Any

from dmole_cli.methods._mixture import OPTIONS, active, joins, penalty
from dmole_cli.methods._mixture import needs_to_join as needs
from dmole_cli.methods._mixture import settings as _transfer
from dmole_cli.methods.base import placement_settings
from dmole_cli.settings.model import Config

__all__ = ["OPTIONS", "active", "joins", "needs", "penalty"]

PAPER = "https://arxiv.org/abs/2506.11672"
USES_ROUTERS = True


def settings(config: Config) -> dict[str, Any]:
    """Those of a uniform placement, and whether an earlier expert may join."""
    return {**placement_settings(config), **_transfer(config)}
