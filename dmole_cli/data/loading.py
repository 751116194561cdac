"""The tasks: one TOML card each, read here and turned into samples; what a card may say stands in `card.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dmole_cli import catalog
from dmole_cli.artifacts.image_digests import ImageDigests
from dmole_cli.data.card import QUESTION, SPLITS, TaskCard, load_card, task_name, task_names
from dmole_cli.data.checking import CheckReport, Findings, Model, Problem, check_rows
from dmole_cli.data.formats._fields import noting
from dmole_cli.data.sample import Sample
from dmole_cli.errors import DmoleError
from dmole_cli.progress import Track, untracked

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
    rows = _rows(card, split, data_root)
    if not rows:
        noun = "training rows" if split == "train" else f"{split} rows"
        hint = f"look at [data] and [sizes] of {card.path}"
        if split == "validation" and "held_out" in card.data:
            hint += (
                "; where a benchmark has no validation split, `held_out = 0.02` in [data] sets a part of training aside"
            )
        raise DmoleError(f"task {card.name} has no {noun}", hint)
    return rows


def _rows(card: TaskCard, split: str, data_root: Path | None) -> Sequence[Sample]:
    read = card.read_as(split)
    reader = catalog.load("formats", read.format)
    rows = reader.load(read, split, data_root=data_root)
    if getattr(reader, "FILLS_PROMPT", False):
        return rows
    return [replace(row, question=card.prompt.replace(QUESTION, row.question)) for row in rows]


def check_card(
    card: TaskCard,
    *,
    data_root: Path | None = None,
    images: int = 0,
    model: Model | None = None,
    looks: int = 5,
    seed: int = 0,
    digests: ImageDigests | None = None,
    track: Track = untracked,
) -> CheckReport:
    """Read the task's data as a run would and report what is wrong, before hours are spent.

    A split with records that cannot be used is read without them, so that all of them are counted.

    Args:
        card: the task.
        data_root: as for `samples`.
        images: how many rows' pictures to open in each split, evenly spread; 0 opens all of them.
        model: what only a backbone can tell: tokens, tiles; None counts words.
        looks: how many samples to show as the model sees them.
        seed: of their choice.
        digests: of picture files; by default they are read here.
        track: shows progress.
    """
    rows: dict[str, Sequence[Sample]] = {}
    findings = Findings()
    for split in filter(card.declares, SPLITS):
        try:
            rows[split] = samples(card, split, data_root=data_root)
        except DmoleError as error:
            usable = _usable(card, split, data_root, findings)
            if usable:
                rows[split] = usable
            elif usable is None:
                findings.add(split, "split", [error.message])
    return check_rows(
        card, rows, findings=findings, images=images, model=model, looks=looks, seed=seed, digests=digests, track=track
    )


def _usable(card: TaskCard, split: str, data_root: Path | None, findings: Findings) -> Sequence[Sample] | None:
    """The rows of a split that can be used, the others noted; None if that is not what is wrong with it."""
    noted: list[int] = []

    def note(kind: str, count: int, first: Sequence[str]) -> None:
        noted.append(count)
        findings.note(split)(kind, count, first)

    try:
        with noting(note):
            rows = _rows(card, split, data_root)
    except DmoleError:
        return None
    return rows if noted else None
