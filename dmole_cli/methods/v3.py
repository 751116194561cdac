"""Ablation v3 of D-MoLE: no curriculum. Paper: D-MoLE, arXiv 2506.11672."""

from __future__ import annotations

from dataclasses import replace

from dmole_cli.methods._mixture import OPTIONS, active, joins, needs, penalty, place, scale, settings
from dmole_cli.settings.model import AllocateSettings

__all__ = ["OPTIONS", "active", "joins", "needs", "penalty", "place", "scale", "settings"]

PAPER = "https://arxiv.org/abs/2506.11672"
USES_ROUTERS = True
ALLOCATES = True


def allocation(settings: AllocateSettings) -> AllocateSettings:
    """The budget is split by the capacity of the modalities, whatever the task's difficulty."""
    return replace(settings, curriculum=False)
