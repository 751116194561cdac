"""A task whose rows are those of several other tasks in turn, each with its own task's question and prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmole_cli.data.card import load_card
from dmole_cli.data.loading import samples
from dmole_cli.data.sample import Sample

if TYPE_CHECKING:
    from dmole_cli.data.card import TaskCard

OPTIONS: Mapping[str, Any] = {"parts": ()}  # built-in tasks whose formats seed their rows by the name of the task
FILLS_PROMPT = True


def load(card: TaskCard, split: str, *, data_root: Path | None) -> list[Sample]:
    """Draw rows of the parts under the name of this task: their sources, but other rows.

    Raises:
        DmoleError: an unknown part, or a data package that is not installed.
    """
    count, parts = getattr(card.sizes, split), card.data["parts"]
    sizes = card.sizes.updated(**{split: -(-count // len(parts))})
    drawn = [
        samples(load_card(part).updated(name=card.name, sizes=sizes), split, data_root=data_root) for part in parts
    ]
    return [
        replace(drawn[index % len(parts)][index // len(parts)], sample_id=f"{split}-{index:05d}")
        for index in range(count)
    ]
