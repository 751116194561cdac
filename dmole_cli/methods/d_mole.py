"""D-MoLE: experts where a task pulls, a router per task, only the new expert trains. Paper: arXiv 2506.11672."""

from __future__ import annotations

from dmole_cli.methods._mixture import OPTIONS, active, joins, needs, penalty, place, scale, settings

__all__ = ["OPTIONS", "active", "joins", "needs", "penalty", "place", "scale", "settings"]

PAPER = "https://arxiv.org/abs/2506.11672"
USES_ROUTERS = True
ALLOCATES = True
