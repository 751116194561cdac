"""Seq-FT: one LoRA on all candidate sites is trained on through the whole sequence; the naive baseline.

Paper: CoIN, arXiv 2403.08350, where it is the sequential fine-tuning row.
"""

from __future__ import annotations

from collections.abc import Sequence

from dmole_cli.methods.contract import (
    Routing,
    configured_scale,
    every_cell,
    needs_nothing,
    nothing_joins,
    placement_settings,
    uniform_placement,
)

PAPER = "https://arxiv.org/abs/2403.08350"
USES_ROUTERS = False
joins = nothing_joins
needs = needs_nothing
place = uniform_placement
scale = configured_scale
settings = placement_settings
cells = every_cell


def start(tasks: Sequence[str], task: str) -> str | None:
    """The task before: its adapter is trained on."""
    position = list(tasks).index(task)
    return tasks[position - 1] if position else None


def active(routing: Routing) -> list[tuple[str, ...]]:
    """The adapter as it stands after the last trained task, for every sample."""
    return [tuple(routing.tasks[-1:]) for _ in routing.losses]
