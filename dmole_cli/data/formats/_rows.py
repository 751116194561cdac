"""Annotation files as samples, whatever their number: converted once into an Arrow file, read from it a block at a time.

A format of files says what a record is: it yields a `Row` for each, in order. Everything else is the same for all of them and
stands here: where the files lie, the prompt, how many rows are wanted, what is held out, and the Arrow file. So neither the
annotations nor the samples are ever held as a list of Python objects; a sample is made when it is asked for.
"""

from __future__ import annotations

import json
import os
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, overload

from dmole_cli.artifacts.files import digest_of, digest_of_file, replacing
from dmole_cli.data.formats._fields import noted
from dmole_cli.data.images import open_image
from dmole_cli.data.sample import Sample
from dmole_cli.data.seeds import stable_hash
from dmole_cli.errors import DmoleError

if TYPE_CHECKING:
    import pyarrow as pa
    from PIL.Image import Image

    from dmole_cli.data.card import TaskCard

VERSION = 1  # of the Arrow files: raise it when a record is read otherwise than before
BLOCK = 512  # rows that are read at once
NAMES, LISTS = ("place", "question", "answer", "references", "images", "details"), ("references", "images")
IN_MEMORY = 4 << 20  # bytes of annotations up to which nothing is written: reading them again is as quick

# Of every format of files, relative to --data-root or the card: the annotations of each split, and the folders that
# pictures' names start at (those of the test split, where they lie elsewhere). `held_out` is the share of training
# pictures that are the validation split where there is no file of one, `held_out_test` those that are the test split; they
# are not trained on.
FILE_OPTIONS: Mapping[str, Any] = {
    "train": "",
    "validation": "",
    "test": "",
    "images": "",
    "test_images": "",
    "held_out": 0.0,
    "held_out_test": 0.0,
}


@dataclass(frozen=True, slots=True)
class Row:
    """What a record says.

    Attributes:
        place: where it stands in its file.
        question: without the prompt.
        answer: to train on.
        references: what the metric accepts.
        images: names of picture files.
        details: what the metric needs, JSON values.
        named: texts that a prompt may name beside `{question}`.
    """

    place: str
    question: str
    answer: str
    references: tuple[str, ...]
    images: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    named: Mapping[str, str] = field(default_factory=dict)


Pictures = tuple[tuple[Callable[[], "Image"], ...], tuple[str, ...], tuple[Path, ...]]
# The split's annotation file, and the files beside it by the option that names them -> rows.
Read = Callable[[Path, Mapping[str, Path]], Iterable[Row]]


def load_rows(
    card: TaskCard, split: str, *, data_root: Path | None, read: Read, beside: Sequence[str] = ()
) -> Sequence[Sample]:
    """Give the samples of one split; a split without a path has none.

    Args:
        card: the task.
        split: `train`, `validation` or `test`.
        data_root: where relative paths start; by default the card's folder.
        read: what a record is.
        beside: options that name further files, where they are given.

    Raises:
        DmoleError: a file is missing or unreadable, or a record is not usable; names the file and the record.
    """
    options, root = card.data, data_root or card.path.parent
    shares = shares_of(card)
    part = "train" if card.holds_out(split) else split
    if not options[part]:
        return []
    path = root / options[part]
    others = {name: root / options[name] for name in beside if options[name]}
    # What is held out of training is decided after reading, so that both splits share one Arrow file.
    divided = part == "train" and bool(shares)
    size = getattr(card.sizes, split)
    rows = converted(
        partial(prompted, card.prompt, path, partial(read, path, others), None if divided else size or None),
        # Some formats read a split that is trained on otherwise than one that is scored.
        key=[card.format, card.prompt, dict(options), None if divided else size, part, split == "train"],
        content=_content([path, *others.values()]),
    )
    chosen = divide(rows, shares, size, split=split) if divided else None
    folder = options["test_images"] if part == "test" and options["test_images"] else ""
    return FileRows(
        rows, split, annotations=path, images=root / (folder or options["images"]), within=folder, chosen=chosen
    )


def unusable(path: Path | str, place: str, what: str, hint: str) -> DmoleError:
    """What a reader says of a record that it cannot use."""
    return DmoleError(f"{path}, {place}: {what}", hint)


def prompted(prompt: str, path: Path | str, read: Callable[[], Iterable[Row]], size: int | None) -> Iterator[Row]:
    """The rows that are read, at most so many, with their prompts filled in."""
    for row in islice(read(), size):
        try:
            "".join([row.question, row.answer, *row.references, *row.images]).encode()
        except UnicodeEncodeError as error:
            raise unusable(path, row.place, f"a text is not Unicode ({error.reason})", "mend the record") from error
        yield replace(row, question=filled(prompt, {**row.named, "question": row.question}))


def filled(prompt: str, texts: Mapping[str, str]) -> str:
    """The prompt with each `{name}` replaced by the text of that name; braces that name nothing stay."""
    return re.sub(r"\{(\w+)\}", lambda found: texts.get(found[1], found[0]), prompt)


class FileRows(Sequence[Sample]):
    """The samples of one split; each is made when it is asked for.

    Args:
        rows: what the records say.
        split: of the samples' ids.
        annotations: the file, for messages.
        images: the folder that pictures' names start at.
        within: that folder, where a split has its own: part of the pictures' identity.
        chosen: which rows, None for all.
    """

    def __init__(
        self,
        rows: Rows,
        split: str,
        *,
        annotations: Path,
        images: Path,
        within: str = "",
        chosen: array[int] | None = None,
    ) -> None:
        self.rows, self.split, self.chosen = rows, split, chosen
        self.annotations, self.images, self.within = annotations, images, within

    def __len__(self) -> int:
        return len(self.rows) if self.chosen is None else len(self.chosen)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self._sample(place) for place in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self._sample(index % len(self))

    def _sample(self, index: int) -> Sample:
        number = index if self.chosen is None else self.chosen[index]
        row = self.rows[number]
        images, sources, files = self.pictures(number, row)
        return Sample(
            sample_id=f"{self.split}-{index:05d}",
            question=row["question"],
            answer=row["answer"],
            references=tuple(row["references"]),
            images=images,
            details=json.loads(row["details"]),
            sources=sources,
            files=files,
        )

    def pictures(self, number: int, row: Mapping[str, Any]) -> Pictures:
        """What opens a row's pictures, what they are known by, and their files."""
        paths = tuple(self.images / name for name in row["images"])
        names = [Path(self.within, name).as_posix() if self.within else name for name in row["images"]]
        place = f"{self.annotations}, {row['place']}"
        return tuple(partial(open_image, path, row=place) for path in paths), tuple(f"file:{n}" for n in names), paths


def shares_of(card: TaskCard) -> dict[str, float]:
    """The splits that are parts of the training file, each with its share of the pictures.

    Raises:
        DmoleError: a share is none, or nothing is left to train on.
    """
    keys = {"validation": "held_out", "test": "held_out_test"}
    for key in keys.values():
        if not 0 <= card.data[key] < 1:
            raise DmoleError(f"{card.path}: data.{key} is {card.data[key]}", "give a share from 0 to below 1")
    shares = {split: card.data[key] for split, key in keys.items() if card.holds_out(split)}
    if sum(shares.values()) >= 1:
        hint = "together they must be below 1, or nothing is left to train on"
        raise DmoleError(
            f"{card.path}: data.held_out and data.held_out_test are {card.data['held_out']} and "
            f"{card.data['held_out_test']}",
            hint,
        )
    return shares


def divide(rows: Rows, shares: Mapping[str, float], size: int, *, split: str) -> array[int]:
    """Indices of the rows of one split of a file that holds several; rows of one picture go together.

    Which pictures are held out depends on their names alone, so that tasks over the same pictures agree.
    """
    chosen = array("q")
    for index in range(len(rows)):
        row = rows[index]
        names = sorted(row["images"]) or [row["question"]]
        if _part(stable_hash("held out", *names) / 2**64, shares) == split:
            chosen.append(index)
        if size and len(chosen) == size:
            break
    return chosen


def _part(place: float, shares: Mapping[str, float]) -> str:
    """The split at a place from 0 to 1: the parts that are held out lie one after another, training behind them."""
    for split, share in shares.items():
        if place < share:
            return split
        place -= share
    return "train"


# ------------------------------------------------------------------------------------------------ the Arrow file


class Rows:
    """Rows in an Arrow file, of which one block is in memory.

    Not memory-mapped: pages of a map count as memory of the process, and a pass over the file would touch them all.

    Args:
        source: the file, or its bytes.
    """

    def __init__(self, source: Path | pa.Buffer) -> None:
        self.source = source
        self.folder: TemporaryDirectory[str] | None = None  # that the file goes with
        self._open()

    def _open(self) -> None:
        import pyarrow as pa

        file = pa.OSFile(str(self.source)) if isinstance(self.source, Path) else pa.BufferReader(self.source)
        self._reader = pa.ipc.open_file(file)
        self._number, self._block = -1, list[tuple[str, Any]]()
        blocks = self._reader.num_record_batches
        self._count = (blocks - 1) * BLOCK + self._reader.get_batch(blocks - 1).num_rows if blocks else 0

    def __getstate__(self) -> Path | pa.Buffer:
        return self.source  # a worker process opens the file itself

    def __setstate__(self, source: Path | pa.Buffer) -> None:
        self.source, self.folder = source, None
        self._open()

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, Any]:
        number, place = divmod(index, BLOCK)
        if number != self._number:
            self._number, self._block = number, list(zip(NAMES, self._reader.get_batch(number).columns, strict=True))
        return {name: column[place].as_py() for name, column in self._block}


def converted(rows: Callable[[], Iterable[Row]], *, key: Sequence[Any], content: Sequence[str]) -> Rows:
    """Rows in Arrow: from the cache if they were read before, else read now.

    Args:
        rows: reads them.
        key: all that shapes them beside the content of what is read.
        content: digests of that; none where it is so little that nothing is kept.

    Raises:
        DmoleError: a file is unreadable, or the cache cannot be written.
    """
    import pyarrow as pa

    if noted():  # rows are left out: nothing that training may find again
        return _aside(rows)
    if not content:
        sink = pa.BufferOutputStream()
        _write(sink, rows())
        return Rows(sink.getvalue())
    path = cache_folder() / "rows" / f"{digest_of([VERSION, *key, *content])}.arrow"
    if not path.exists():
        with _kept(path) as temporary:
            _write(str(temporary), rows())
    return Rows(path)


def _aside(rows: Callable[[], Iterable[Row]]) -> Rows:
    """Rows in a file that goes when they do."""
    folder = TemporaryDirectory(prefix="dmole-")
    path = Path(folder.name, "rows.arrow")
    _write(str(path), rows())
    found = Rows(path)
    found.folder = folder
    return found


@contextmanager
def _kept(path: Path) -> Iterator[Path]:
    try:
        with replacing(path) as temporary:
            yield temporary
    except DmoleError as error:
        if isinstance(error.__cause__, OSError) and str(path) in error.message:
            hint = "set DMOLE_CACHE to a folder on a disk with room that can be written"
            raise DmoleError(error.message, hint) from error
        raise


def _content(files: Sequence[Path]) -> list[str]:
    """Digests of files, none if they are small."""
    try:
        large = sum(path.stat().st_size for path in files) > IN_MEMORY
        return [digest_of_file(path) for path in files] if large else []
    except FileNotFoundError as error:
        hint = "check [data] of the task card or --data-root"
        raise DmoleError(f"missing annotation file {error.filename}", hint) from error
    except OSError as error:
        raise DmoleError(
            f"cannot read the annotation file {error.filename}: {error.strerror}", "check the path"
        ) from error


def cache_folder() -> Path:
    """Where converted annotations are kept: $DMOLE_CACHE, else `dmole` in the user's cache folder."""
    chosen = os.environ.get("DMOLE_CACHE")
    return Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dmole"


def _write(sink: Any, rows: Iterable[Row]) -> None:
    import pyarrow as pa

    text = pa.string()
    schema = pa.schema([(name, pa.list_(text) if name in LISTS else text) for name in NAMES])
    source = iter(rows)
    with pa.ipc.new_file(sink, schema) as writer:
        while block := list(islice(source, BLOCK)):
            writer.write_batch(pa.RecordBatch.from_pylist([_cells(row) for row in block], schema))


def _cells(row: Row) -> dict[str, Any]:
    # Backslashes for all that is not ASCII: half a surrogate pair in an option can be kept then, too.
    details = json.dumps(row.details, default=str)
    texts = (row.place, row.question, row.answer, list(row.references), list(row.images), details)
    return dict(zip(NAMES, texts, strict=True))
