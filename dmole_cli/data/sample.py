"""The sample: a question about images and its correct answers, the common form of all task data."""

from __future__ import annotations

from abc import abstractmethod
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

if TYPE_CHECKING:
    from PIL.Image import Image

# How the source of an image file begins; the rest is its path below the task's folder of images.
FILE_SOURCE = "file:"


@dataclass(frozen=True, slots=True)
class Sample:
    """One row of a task's split.

    Attributes:
        sample_id: unique within the task's split and the same on every machine.
        question: the instruction as the model receives it (the card's prompt template is already applied); `<image>` is the
            place of the next image (see markers.py), and without markers the images precede the text.
        answer: the training answer.
        references: the answers that the metric compares a prediction with, at least one.
        images: functions that open the sample's images (RGB). Call them when the pixels are needed, not earlier; they raise
            `DmoleError` naming the file if it is missing or unreadable.
        details: what the metric needs beyond the references (options, box, size), JSON values only.
        sources: identities of the source items that the sample is made of, e.g. `mnist:1234`; no two splits share one.
        files: the image files; empty if the images are composed from an installed package.
    """

    sample_id: str
    question: str
    answer: str
    references: tuple[str, ...]
    images: tuple[Callable[[], Image], ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    sources: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()

    @property
    def image_names(self) -> list[str]:
        """What its images are called: paths of files as the record has them, else their sources; empty without an image."""
        return [source.removeprefix(FILE_SOURCE) for source in self.sources] if self.images else []


class LazySamples(Sequence[Sample]):
    """Samples that are made on access; subclasses define `__len__` and `sample_at`."""

    @abstractmethod
    def sample_at(self, index: int) -> Sample:
        """Make the sample at an index in [0, len)."""

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self.sample_at(number) for number in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self.sample_at(index % len(self))


class Picked(LazySamples):
    """Selected samples of several splits in a chosen order, each made on access.

    Args:
        splits: the splits.
        rows: indices into the concatenation of the splits.
    """

    def __init__(self, splits: Sequence[Sequence[Sample]], rows: Iterable[int]) -> None:
        self._splits, self._rows = splits, array("q", rows)

    def __len__(self) -> int:
        return len(self._rows)

    def sample_at(self, index: int) -> Sample:
        """Return a sample of one of the splits."""
        row = self._rows[index]
        for split in self._splits:
            if row < len(split):
                return split[row]
            row -= len(split)
        raise IndexError(index)
