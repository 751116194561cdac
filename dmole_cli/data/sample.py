"""The one record that task data are turned into: a question about a picture, and what counts as right."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, slots=True)
class Sample:
    """One row of a task's split.

    Attributes:
        sample_id: unique within the task's split and the same on every machine.
        question: the whole instruction as the model sees it (the card's prompt template already applied).
        answer: the text to train on.
        references: the texts that the metric compares a prediction with, at least one.
        images: functions that open the sample's pictures (RGB), called when the pixels are needed and not before;
            they raise `DmoleError` naming the file when it is missing or does not open.
        details: what the metric needs beyond the references (options, box, size), JSON values only.
        sources: identities of the source items the sample was made of, e.g. `mnist:1234`; splits share none.
        files: the picture files it opens; none where pictures are composed from an installed package.
    """

    sample_id: str
    question: str
    answer: str
    references: tuple[str, ...]
    images: tuple[Callable[[], Image], ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    sources: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()


class Picked(Sequence[Sample]):
    """Some samples of some splits, in a chosen order, each made when it is asked for.

    Args:
        splits: where they are taken from.
        rows: which rows, counted through all splits, one split after the other.
    """

    def __init__(self, splits: Sequence[Sequence[Sample]], rows: Iterable[int]) -> None:
        self._splits, self._rows = splits, array("q", rows)

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        row = self._rows[index]
        for split in self._splits:
            if row < len(split):
                return split[row]
            row -= len(split)
        raise IndexError(index)
