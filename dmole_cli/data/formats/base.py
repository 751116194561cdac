"""The contract of a format. A new format is one new file in this folder; nothing else needs an edit.

A file of this folder defines `OPTIONS`, `FILLS_PROMPT`, `load` and `recognise`. A file of `data/synthetic/`, which draws its
images instead of reading annotations, defines `OPTIONS` and `load` only. Helpers that formats share are in files whose
names begin with an underscore: most formats only parse a record and leave the rest to `_rows.load_rows`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from dmole_cli import catalog
from dmole_cli.data.formats._json import records
from dmole_cli.data.sample import Sample
from dmole_cli.errors import DmoleError

if TYPE_CHECKING:
    from dmole_cli.data.card import TaskCard

PEEKED = 100  # records that a format is recognised from
TABLES = (".parquet", ".arrow", ".csv", ".tsv")  # files that are not read as JSON


class Format(Protocol):
    """Turns a task card into samples."""

    OPTIONS: Mapping[str, Any]
    """Keys of the card's [data] with their default values; the default's type is the type of the option."""

    def load(self, card: TaskCard, split: str, *, data_root: Path | None) -> Sequence[Sample]:
        """Return the samples of a split, empty if the card names no data for it; no image is opened.

        Args:
            card: the task, with `card.data` complete with the defaults of `OPTIONS`.
            split: `train`, `validation` or `test`.
            data_root: the folder that relative paths start at; None: the card's folder.

        Raises:
            DmoleError: a file or package is missing, or a record is invalid; names the file and the record.
        """


class AnnotationFormat(Format, Protocol):
    """Reads a user's annotation files."""

    FILLS_PROMPT: bool
    """True if `load` applies the card's prompt template; by default this is done to its samples afterwards."""

    def recognise(self, source: Source) -> Guess | None:
        """Return how a card reads this source, None if it is not of this format."""


@dataclass(frozen=True)
class Source:
    """A file or folder whose format is to be recognised.

    Attributes:
        path: the file or folder.
        records: the first `PEEKED` records if it is a JSON array or JSON lines, else empty.
        is_document: the file is one JSON object (`_json.members` reads it).
        problem: why it is neither; raised if no format recognises the source in another way.
    """

    path: Path
    records: Sequence[Mapping[str, Any]] = ()
    is_document: bool = False
    problem: DmoleError | None = None

    @cached_property
    def fields(self) -> set[str]:
        """Fields that all records have."""
        return set(self.records[0]).intersection(*self.records) if self.records else set()

    @cached_property
    def optional_fields(self) -> set[str]:
        """Fields that at least one record has."""
        return {key for record in self.records for key in record}

    @classmethod
    def of(cls, path: Path) -> Source:
        """Read the beginning of a file."""
        if path.is_dir() or path.suffix in TABLES:
            return cls(path)
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            is_object = file.read(1 << 16).lstrip()[:1] == "{"
        try:
            peeked = [value for _, value in islice(records(path), PEEKED)]
        except DmoleError as error:  # an object over several lines is not JSON lines
            return cls(path, is_document=is_object, problem=None if is_object else error)
        wrong = next((value for value in peeked if not isinstance(value, dict)), None)
        if not peeked:
            problem = DmoleError(f"{path} contains no record", "one JSON object a line, or a JSON array of them")
        elif wrong is not None:
            what = f"{path} contains {type(wrong).__name__} where a record is expected"
            problem = DmoleError(what, "a record is a JSON object")
        else:
            return cls(path, peeked, is_document=is_object and len(peeked) == 1)
        return cls(path, problem=problem)


@dataclass(frozen=True)
class Guess:
    """How a card reads a source, and how certain a format is that the source is its own.

    Attributes:
        certainty: of several formats that recognise a source the one with the highest number is chosen: 9 for a field that
            only this format has, 1 for fields that most formats have.
        why: what the guess is based on, shown to the user.
        data: options of [data], without the names of the annotation files. With `images` it says where the images are;
            without, images are files whose folder is searched.
        prompt: the card's prompt; empty if it depends on the answers.
        metric: the card's metric; empty if it depends on the answers.
        source_option: the option that names the source if one source contains all splits; empty if `train`, `validation`
            and `test` each name a file.
        problem: raised if the guess is chosen: the source is of this format, but incomplete or unreadable.
        has_question: whether records have a question; if not, the prompt is the whole instruction.
    """

    certainty: int
    why: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)
    prompt: str = ""
    metric: str = ""
    source_option: str = ""
    problem: DmoleError | None = None
    has_question: bool = True


def load_format(name: str) -> Format:
    """Import a format of the shelf.

    Raises:
        DmoleError: there is no such format.
    """
    return cast(Format, catalog.load("formats", name))


def annotation_formats() -> dict[str, AnnotationFormat]:
    """The formats that recognise files, by name."""
    formats = {name: catalog.load("formats", name) for name in catalog.names("formats")}
    return {name: cast(AnnotationFormat, found) for name, found in formats.items() if hasattr(found, "recognise")}
