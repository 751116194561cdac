"""Splits that are held out of the training file: which images belong to them, and so which rows."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import TYPE_CHECKING

from dmole_cli.data.formats._arrow import ArrowRows
from dmole_cli.data.seeds import stable_hash
from dmole_cli.errors import DmoleError

if TYPE_CHECKING:
    from dmole_cli.data.card import TaskCard


def held_out_shares(card: TaskCard) -> dict[str, float]:
    """Split -> share of the training file's images, for the splits that are held out of it.

    Raises:
        DmoleError: a share is not in [0, 1), or no training data remain.
    """
    keys = {"validation": "held_out", "test": "held_out_test"}
    for key in keys.values():
        if not 0 <= card.data[key] < 1:
            raise DmoleError(f"{card.path}: invalid data.{key} {card.data[key]}", "give a share from 0 to below 1")
    shares = {split: card.data[key] for split, key in keys.items() if card.holds_out(split)}
    if sum(shares.values()) >= 1:
        both = f"{card.data['held_out']} and {card.data['held_out_test']}"
        raise DmoleError(
            f"{card.path}: data.held_out and data.held_out_test are {both}",
            "their sum must be below 1, or no training data remain",
        )
    return shares


def rows_of_split(rows: ArrowRows, shares: Mapping[str, float], size: int, *, split: str) -> array[int]:
    """Indices of the rows that belong to `split`, at most `size` of them (0: all).

    Rows of the same images belong to the same split. A hash of the images' names decides, so tasks over the same images
    agree.
    """
    chosen = array("q")
    for index in range(len(rows)):
        row = rows[index]
        names = sorted(row["images"]) or [row["question"]]
        if _split_at(stable_hash("held out", *names) / 2**64, shares) == split:
            chosen.append(index)
        if size and len(chosen) == size:
            break
    return chosen


def _split_at(position: float, shares: Mapping[str, float]) -> str:
    """The split at a position in [0, 1): the held-out splits in order, then training."""
    for split, share in shares.items():
        if position < share:
            return split
        position -= share
    return "train"
