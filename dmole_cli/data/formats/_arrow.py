"""Rows of annotations in an Arrow file that is read block by block, so that memory does not grow with their number."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, TYPE_CHECKING, Any

from dmole_cli.artifacts.files import digest_of, digest_of_file, replacing
from dmole_cli.data.invalid_records import skips_invalid
from dmole_cli.errors import DmoleError

if TYPE_CHECKING:
    import pyarrow as pa

VERSION = 2  # of the Arrow files: increase it when records are parsed differently
BLOCK = 512  # rows that are read at a time
COLUMNS, LIST_COLUMNS = (
    ("place", "question", "answer", "references", "images", "details", "identity"),
    ("references", "images"),
)
IN_MEMORY = 4 << 20  # bytes of annotations up to which nothing is cached: parsing them again is as fast


@dataclass(frozen=True, slots=True)
class Row:
    """The content of a record.

    Attributes:
        place: location in its file, for error messages.
        question: without the prompt.
        answer: the training answer.
        references: the answers that the metric accepts.
        images: names of image files.
        details: what the metric needs beyond the references, JSON values.
        named: texts that a prompt may name besides `{question}`.
        identity: digest of the content of a record without image; `_rows.with_prompts` computes it.
    """

    place: str
    question: str
    answer: str
    references: tuple[str, ...]
    images: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    named: Mapping[str, str] = field(default_factory=dict)
    identity: str = ""


class ArrowRows:
    """Rows of an Arrow file as dictionaries; one block of them is in memory.

    The file is not memory-mapped: a pass over it would count all its pages as memory of the process.

    Args:
        source: the file, or its bytes.
    """

    def __init__(self, source: Path | pa.Buffer) -> None:
        self.source = source
        self.folder: TemporaryDirectory[str] | None = None  # deleted together with the rows
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

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """All rows in order: a block at once, which takes a fraction of the time of single values."""
        for number in range(self._reader.num_record_batches):
            yield from self._reader.get_batch(number).to_pylist()

    def values(self, column: str) -> Iterator[Any]:
        """The values of one column, in order."""
        for number in range(self._reader.num_record_batches):
            yield from self._reader.get_batch(number).column(COLUMNS.index(column)).to_pylist()

    def __getitem__(self, index: int) -> dict[str, Any]:
        number, offset = divmod(index, BLOCK)
        if number != self._number:
            columns = self._reader.get_batch(number).columns
            self._number, self._block = number, list(zip(COLUMNS, columns, strict=True))
        return {name: column[offset].as_py() for name, column in self._block}


def arrow_rows(parse: Callable[[], Iterable[Row]], *, key: Sequence[Any], content: Sequence[str]) -> ArrowRows:
    """Parse annotations into an Arrow file in the cache, or open the file if the same were parsed before.

    Args:
        parse: yields the rows.
        key: everything that determines the rows besides the content of the annotation files.
        content: digests of these files; empty if they are too small to be cached.

    Raises:
        DmoleError: a file is unreadable, or the cache cannot be written.
    """
    import pyarrow as pa

    if skips_invalid():  # incomplete: training must never find these rows in the cache
        return _temporary(parse)
    if not content:
        sink = pa.BufferOutputStream()
        _write(sink, parse())
        return ArrowRows(sink.getvalue())
    path = cache_folder() / "rows" / f"{digest_of([VERSION, *key, *content])}.arrow"
    checksum = path.with_suffix(".sha256")
    if not _is_intact(path, checksum):
        with _writing_cache(path) as file:
            _write(file, parse())
        with _writing_cache(checksum) as file:
            file.write(digest_of_file(path).encode())
    return ArrowRows(path)


def _is_intact(path: Path, checksum: Path) -> bool:
    """Whether a file of the cache exists and is as it was written; a damaged one is written again."""
    try:
        return checksum.read_text(encoding="utf-8") == digest_of_file(path)
    except (OSError, UnicodeDecodeError):
        return False


def _temporary(parse: Callable[[], Iterable[Row]]) -> ArrowRows:
    folder = TemporaryDirectory(prefix="dmole-")
    path = Path(folder.name, "rows.arrow")
    _write(str(path), parse())
    rows = ArrowRows(path)
    rows.folder = folder
    return rows


@contextmanager
def _writing_cache(path: Path) -> Iterator[IO[bytes]]:
    try:
        with replacing(path, by_all=True) as file:
            yield file
    except DmoleError as error:
        if isinstance(error.__cause__, OSError) and str(path) in error.message:
            hint = "set DMOLE_CACHE to a writable folder on a disk with free space"
            raise DmoleError(error.message, hint) from error
        raise


def content_digests(files: Sequence[Path]) -> list[str]:
    """Digests of annotation files; empty if the files are small (see `IN_MEMORY`).

    Raises:
        DmoleError: a file is missing or unreadable.
    """
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
    """The folder of cached annotations: $DMOLE_CACHE, else `dmole` in the user's cache folder."""
    chosen = os.environ.get("DMOLE_CACHE")
    return Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dmole"


def _write(sink: Any, rows: Iterable[Row]) -> None:
    import pyarrow as pa

    text = pa.string()
    schema = pa.schema([(name, pa.list_(text) if name in LIST_COLUMNS else text) for name in COLUMNS])
    source = iter(rows)
    with pa.ipc.new_file(sink, schema) as writer:
        while block := list(islice(source, BLOCK)):
            writer.write_batch(pa.RecordBatch.from_pylist([_values(row) for row in block], schema))


def _values(row: Row) -> dict[str, Any]:
    # ASCII escapes, because an option may contain half of a surrogate pair, which UTF-8 cannot encode.
    details = json.dumps(row.details, default=str)
    texts = (row.place, row.question, row.answer, list(row.references), list(row.images), details, row.identity)
    return dict(zip(COLUMNS, texts, strict=True))
