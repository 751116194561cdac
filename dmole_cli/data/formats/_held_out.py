"""Splits that are held out of the training file: which images belong to them, and so which rows.

What decides is the content of the images of a row, as in `tasks check`: copies of an image, and rows that share an image, are in
the same split. Of a row without image it is the content of its record. Names of files and the prompt have no influence.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmole_cli.artifacts.image_digests import MISSING, ImageDigests
from dmole_cli.data.formats._arrow import ArrowRows, cache_folder
from dmole_cli.data.seeds import stable_hash
from dmole_cli.errors import DmoleError

if TYPE_CHECKING:
    from dmole_cli.data.card import TaskCard

FEW = 2000  # rows up to which no digests are stored


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


def rows_of_split(
    rows: ArrowRows, shares: Mapping[str, float], size: int, *, split: str, images: Path | None = None
) -> array[int]:
    """Indices of the rows that belong to `split`, at most `size` of them (0: all).

    Tasks over the same images agree, except on images that rows of several images connect.

    Args:
        rows: the rows of the training file.
        shares: see `held_out_shares`.
        size: maximum number of rows.
        split: the split.
        images: the folder of the image files; None: the images of a row are identified by digests already.
    """
    items, groups = array("Q"), _Groups()
    with _digests(len(rows)) as digests:
        for row in rows:
            found = [stable_hash("held out", name) for name in _identities(row, images, digests)]
            items.append(found[0])
            groups.join(found)
    chosen = array("q")
    for index, item in enumerate(items):
        if _split_at(groups.of(item) / 2**64, shares) == split:
            chosen.append(index)
        if size and len(chosen) == size:
            break
    return chosen


def _identities(row: Mapping[str, Any], images: Path | None, digests: ImageDigests) -> list[str]:
    if not row["images"]:
        return [row["identity"]]
    if images is None:
        return list(row["images"])
    found = ((name, digests[images / name]) for name in row["images"])
    return [name if digest == MISSING else digest for name, digest in found]


@contextmanager
def _digests(rows: int) -> Iterator[ImageDigests]:
    """Digests of image files, which are stored between commands if there are many."""
    digests = ImageDigests(cache_folder() / "images.sqlite" if rows > FEW else Path("never-saved.sqlite"))
    yield digests
    if rows > FEW:
        with suppress(DmoleError):  # a cache that cannot be written only costs time
            digests.save()


class _Groups:
    """Images that rows of several images connect; only these are stored."""

    def __init__(self) -> None:
        self._above: dict[int, int] = {}

    def join(self, images: Sequence[int]) -> None:
        """Note that these images are in the same row."""
        if len(set(images)) > 1:
            roots = sorted({self._root(image) for image in images})
            self._above.update(dict.fromkeys([*images, *roots], roots[0]))

    def of(self, image: int) -> int:
        """A number in [0, 2**64) that is the same for all images of a group: of an image alone its own."""
        return stable_hash("held out", self._root(image)) if image in self._above else image

    def _root(self, image: int) -> int:
        while (above := self._above.get(image, image)) != image:
            image = above
        return image


def _split_at(position: float, shares: Mapping[str, float]) -> str:
    """The split at a position in [0, 1): the held-out splits in order, then training."""
    for split, share in shares.items():
        if position < share:
            return split
        position -= share
    return "train"
