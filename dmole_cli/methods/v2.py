"""Ablation v2 of D-MoLE: only the vision encoder may change. Paper: D-MoLE, arXiv 2506.11672."""

from __future__ import annotations

from dataclasses import replace

from dmole_cli.methods._mixture import OPTIONS, active, joins, needs, penalty, place, scale, settings
from dmole_cli.settings.model import AllocateSettings

__all__ = ["OPTIONS", "active", "joins", "needs", "penalty", "place", "scale", "settings"]

PAPER = "https://arxiv.org/abs/2506.11672"
USES_ROUTERS = True
ALLOCATES = True


def allocation(settings: AllocateSettings) -> AllocateSettings:
    """All of the budget for the vision encoder."""
    return replace(settings, modalities=("vision",))
