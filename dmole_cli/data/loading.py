"""The samples of a task's split, and the check of a task's data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dmole_cli.artifacts.image_digests import ImageDigests
from dmole_cli.data.card import QUESTION, SPLITS, TaskCard
from dmole_cli.data.checking import CheckReport, Findings, Model, check_rows, previews
from dmole_cli.data.expected_files import check_files
from dmole_cli.data.formats.base import load_format
from dmole_cli.data.invalid_records import skipping_invalid
from dmole_cli.data.sample import Sample
from dmole_cli.errors import DmoleError
from dmole_cli.progress import Track, quiet


class EmptySplit(DmoleError):
    """A split without any sample."""


def samples(card: TaskCard, split: str, *, data_root: Path | None = None) -> Sequence[Sample]:
    """Return the samples of one split, with the prompt template applied; no image is opened.

    Samples of annotation files are made on access, so that memory does not grow with the split. To go through all of them,
    iterate over the sequence instead of copying it into a list.

    Args:
        card: the task.
        split: `train`, `validation` or `test`.
        data_root: the folder that relative paths start at; None: the card's folder.

    Raises:
        EmptySplit: the split has no samples.
        DmoleError: a data package or file is missing, or a record is invalid.
    """
    if split not in SPLITS:
        raise DmoleError(f"unknown split '{split}'", f"splits: {', '.join(SPLITS)}")
    rows = _rows(card, split, data_root)
    if not rows:
        noun = "training rows" if split == "train" else f"{split} rows"
        hint = f"check [data] and [sizes] of {card.path}"
        if split == "validation" and "held_out" in card.data:
            hint += (
                "; for a benchmark without validation split, `held_out = 0.02` in [data] holds out a part of training"
            )
        raise EmptySplit(f"task {card.name} has no {noun}", hint)
    return rows


def _rows(card: TaskCard, split: str, data_root: Path | None) -> Sequence[Sample]:
    check_files(card, split, data_root)
    read = card.read_as(split)
    reader = load_format(read.format)
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
    track: Track = quiet,
) -> CheckReport:
    """Read a task's data as a run would, and report all problems.

    Invalid records are skipped, so that all of them are counted.

    Args:
        card: the task.
        data_root: as for `samples`.
        images: number of rows per split whose images are opened, evenly spread; 0 opens all of them.
        model: counts tokens and tiles; None counts words.
        looks: number of sample previews, as the model receives them.
        seed: for drawing these samples.
        digests: cached digests of image files; None computes them.
        track: shows progress.
    """
    rows: dict[str, Sequence[Sample]] = {}
    findings, said = Findings(), set[str]()
    if not card.declares("train"):
        findings.add("train", "no_training", [f"`train` in [data] of {card.path} is empty"])
    for split in filter(card.declares, SPLITS):
        try:
            rows[split] = samples(card, split, data_root=data_root)
        except DmoleError as error:
            valid = _valid_rows(card, split, data_root, findings)
            if valid:
                rows[split] = valid
            elif valid is None and error.message not in said:
                said.add(error.message)  # one error may concern all splits
                findings.add(split, "split", [error.message])
    report = check_rows(card, rows, findings=findings, images=images, model=model, digests=digests, track=track)
    return replace(report, looks=tuple(previews(card, rows, model, count=looks, seed=seed)) if model else ())


def _valid_rows(card: TaskCard, split: str, data_root: Path | None, findings: Findings) -> Sequence[Sample] | None:
    """The samples of a split without its invalid records, which are counted; None if the split has another problem."""
    skipped: list[int] = []

    def report(kind: str, count: int, first: Sequence[str]) -> None:
        skipped.append(count)
        findings.add_invalid(split, kind, count, first)

    try:
        with skipping_invalid(report):
            rows = _rows(card, split, data_root)
    except DmoleError:
        return None
    return rows if skipped else None
