"""The files of a published benchmark that a card expects, and the error for those that are missing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dmole_cli.data.card import SPLITS, TaskCard
from dmole_cli.data.formats.base import load_format
from dmole_cli.errors import DmoleError
from dmole_cli.settings.reading import listed

FURTHER_FILES = (
    "problems",
    "pid_splits",
    "annotations",
    "train_annotations",
    "validation_annotations",
    "test_annotations",
)
FOLDERS = ("images", "test_images")


def check_files(card: TaskCard, split: str, root: Path | None) -> None:
    """Raise an error if a file that a split of a benchmark needs is missing; it lists all files of the benchmark.

    Args:
        card: the task; of a card without `url` in [source], the reader of its files reports what is missing.
        split: `train`, `validation` or `test`.
        root: the folder that relative paths start at; None: the card's folder.

    Raises:
        DmoleError: a file is missing.
    """
    if not card.source.url or card.source.packages or not {"train", "images"} <= card.data.keys():
        return
    base = root or card.path.parent
    if all((base / name).exists() for name in _needed(card, split)):
        return
    where = f"below {base}" if root else "without --data-root"
    expected = [f"{name}{'' if (base / name).exists() else ' (missing)'}{note}" for name, note in _expected(card)]
    raise DmoleError(
        f"task {card.name}: files of its benchmark, published at {card.source.url}, are missing {where}; expected are"
        f"{listed(expected)}",
        f"get the files from {card.source.url}, put them into this layout (docs/benchmarks.md) and pass their folder: "
        "--data-root FOLDER",
    )


def _needed(card: TaskCard, split: str) -> Iterator[str]:
    part = "train" if card.holds_out(split) else split
    read = card.read_as(split)
    options = load_format(read.format).OPTIONS
    names = ("problems", "pid_splits", "annotations", f"{part}_annotations")
    keys = [*([] if _splits_are_names(card) else [part]), *(name for name in names if name in options)]
    yield from (card.data[key] for key in keys if card.data.get(key))


def _expected(card: TaskCard) -> list[tuple[str, str]]:
    """Files, then folders of images, each with a note."""
    keys = [*([] if _splits_are_names(card) else SPLITS), *FURTHER_FILES]
    files = dict.fromkeys(card.data[key] for key in keys if card.data.get(key))
    folders = dict.fromkeys(card.data[key] for key in FOLDERS if card.data.get(key))
    return [
        *((name, "") for name in files),
        *((name, ": at which the image paths of the records start") for name in folders),
    ]


def _splits_are_names(card: TaskCard) -> bool:
    """Whether `train`, `validation` and `test` are no files, but names in another file."""
    return load_format(card.format).OPTIONS.get("train", "") == "train"
