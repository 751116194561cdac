"""The tasks: one TOML card each, read here and turned into samples; what a card may say stands in `card.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dmole_cli import catalog
from dmole_cli.errors import DmoleError
from dmole_cli.sample import Sample
from dmole_cli.tasks.card import QUESTION, SPLITS, TaskCard, load_card, task_name, task_names
from dmole_cli.tasks.check import CheckReport, Problem, check_rows

__all__ = [
    "SPLITS",
    "CheckReport",
    "Problem",
    "TaskCard",
    "check_card",
    "load_card",
    "samples",
    "task_name",
    "task_names",
]


def samples(card: TaskCard, split: str, *, data_root: Path | None = None) -> Sequence[Sample]:
    """Give the rows of one split, the prompt template applied; no picture is opened yet.

    Samples of files are made when they are asked for, so that memory does not grow with the split; whoever wants them all
    goes through them one at a time.

    Args:
        card: the task.
        split: `train`, `validation` or `test`.
        data_root: the folder that relative data paths start at; by default the card's own.

    Raises:
        DmoleError: a data package or file is missing, a record is unreadable, or the split has no row.
    """
    if split not in SPLITS:
        raise DmoleError(f"unknown split '{split}'", f"splits: {', '.join(SPLITS)}")
    read = card.read_as(split)
    reader = catalog.load("formats", read.format)
    rows = reader.load(read, split, data_root=data_root)
    if not rows:
        noun = "training rows" if split == "train" else f"{split} rows"
        hint = f"look at [data] and [sizes] of {card.path}"
        if split == "validation" and "held_out" in card.data:
            hint += (
                "; where a benchmark has no validation split, `held_out = 0.02` in [data] sets a part of training aside"
            )
        raise DmoleError(f"task {card.name} has no {noun}", hint)
    if getattr(reader, "FILLS_PROMPT", False):
        return rows
    return [replace(row, question=card.prompt.replace(QUESTION, row.question)) for row in rows]


def check_card(card: TaskCard, *, data_root: Path | None = None, images: int = 64) -> CheckReport:
    """Open the task's data as a run would and report what is wrong, before hours are spent.

    Args:
        card: the task.
        data_root: as for `samples`.
        images: how many pictures to open in each split, evenly spread; 0 opens all of them.
    """
    rows: dict[str, Sequence[Sample]] = {}
    problems: list[Problem] = []
    for split in filter(card.declares, SPLITS):
        try:
            rows[split] = samples(card, split, data_root=data_root)
        except DmoleError as error:
            problems.append(Problem(split=split, kind="split", count=1, first=(error.message,)))
    return check_rows(card, rows, problems=problems, images=images)
