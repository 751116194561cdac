"""Zero-shot: the pretrained backbone on every task, nothing trained. Paper: D-MoLE, arXiv 2506.11672, row "Zero-shot"."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dmole_cli.config import Config
from dmole_cli.errors import DmoleError
from dmole_cli.methods.contract import Cell, Routing, Stage, configured_scale, needs_nothing, nothing_joins

PAPER = "https://arxiv.org/abs/2506.11672"
USES_ROUTERS = False
joins = nothing_joins
needs = needs_nothing
scale = configured_scale


def place(stage: Stage) -> dict[str, int]:
    """Nothing trains."""
    raise DmoleError("method zero-shot trains nothing", "evaluate it: dmole evaluate --method zero-shot")


def settings(config: Config) -> dict[str, Any]:
    """No setting."""
    return {}


def start(tasks: Sequence[str], task: str) -> str | None:
    """Nothing."""
    return None


def cells(tasks: Sequence[str], unseen: Sequence[str]) -> list[Cell]:
    """Stage 0, every task."""
    return [(0, task) for task in (*tasks, *unseen)]


def active(routing: Routing) -> list[tuple[str, ...]]:
    """No expert."""
    return [() for _ in routing.losses]
