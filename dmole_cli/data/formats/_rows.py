"""From annotation files to samples, which are made on access.

A format says how to parse a record: it yields a `Row` for each, in the order of the file. What is common to all formats of
files is here: the location of the files, the prompt, the number of rows, held-out splits and the Arrow cache. Neither the
annotations nor the samples are ever held as a list of Python objects.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmole_cli.data import markers
from dmole_cli.data.formats._arrow import ArrowRows, Row, arrow_rows, content_digests
from dmole_cli.data.formats._fields import Record, is_finite
from dmole_cli.data.formats._held_out import held_out_shares, rows_of_split
from dmole_cli.data.formats._json import records
from dmole_cli.data.images import open_image
from dmole_cli.data.invalid_records import InvalidRecord, report_or_raise, valid_records
from dmole_cli.data.sample import LazySamples, Sample
from dmole_cli.errors import DmoleError

if TYPE_CHECKING:
    from PIL.Image import Image

    from dmole_cli.data.card import TaskCard

# Options of every format of files. Paths are relative to --data-root or the card: the annotation file of each split, and the
# folder of the images (`test_images`: of the test split, if it has its own). `held_out` is the share of the training file's
# images that form the validation split if `validation` is empty, `held_out_test` those of the test split; they are excluded
# from training.
FILE_OPTIONS: Mapping[str, Any] = {
    "train": "",
    "validation": "",
    "test": "",
    "images": "",
    "test_images": "",
    "held_out": 0.0,
    "held_out_test": 0.0,
}

# Pixels by which a side of an image may differ from that of a box's frame after both were scaled to one size.
ROUNDED = 1.5

# Functions that open the images, the images' identities, and their files.
Images = tuple[tuple[Callable[[], "Image"], ...], tuple[str, ...], tuple[Path, ...]]
# (the split's annotation file, other files by the option that names them) -> rows
Read = Callable[[Path, Mapping[str, Path]], Iterable[Row]]


def load_rows(
    card: TaskCard, split: str, *, data_root: Path | None, read: Read, other_files: Sequence[str] = ()
) -> Sequence[Sample]:
    """Return the samples of a split; empty if the card names no file for it.

    Args:
        card: the task.
        split: `train`, `validation` or `test`.
        data_root: the folder that relative paths start at; None: the card's folder.
        read: parses the annotation file.
        other_files: options that may name further files.

    Raises:
        DmoleError: a file is missing or unreadable, or a record is invalid; names the file and the record.
    """
    options, root = card.data, data_root or card.path.parent
    shares = held_out_shares(card)
    part = "train" if card.holds_out(split) else split
    if not options[part]:
        return []
    path = root / options[part]
    others = {name: root / options[name] for name in other_files if options[name]}
    # Held-out rows are selected after parsing, so that both splits share one Arrow file.
    divided = part == "train" and bool(shares)
    size = getattr(card.sizes, split)
    rows = arrow_rows(
        partial(with_prompts, card.prompt, path, partial(read, path, others), None if divided else size or None),
        # `split == "train"`: some formats parse training and test data differently.
        key=[card.format, card.prompt, dict(options), None if divided else size, part, split == "train"],
        content=content_digests([path, *others.values()]),
    )
    folder = options["test_images"] if part == "test" and options["test_images"] else ""
    images = root / (folder or options["images"])
    chosen = rows_of_split(rows, shares, size, split=split, images=images) if divided else None
    return FileRows(rows, split, annotations=path, images=images, subfolder=folder, chosen=chosen)


def load_records(
    card: TaskCard, split: str, *, data_root: Path | None, parse: Callable[[Record], Row], hint: str
) -> Sequence[Sample]:
    """Return the samples of a split of JSON records (an array or JSON lines), one row per record.

    Args:
        card, split, data_root: as for `load_rows`.
        parse: makes a row of a record.
        hint: what a valid record looks like, for error messages.

    Raises:
        DmoleError: the file is missing or unreadable, or a record is invalid; names the file and the record.
    """
    return load_rows(card, split, data_root=data_root, read=partial(_parsed, parse=parse, hint=hint))


def _parsed(path: Path, other_files: Mapping[str, Path], *, parse: Callable[[Record], Row], hint: str) -> Iterator[Row]:
    return valid_records(records(path), lambda place, value: [parse(Record(path, place, value, hint=hint))])


def with_prompts(prompt: str, path: Path | str, read: Callable[[], Iterable[Row]], size: int | None) -> Iterator[Row]:
    """Yield the first `size` rows (None: all) with the prompt filled in, and its image markers counted.

    Raises:
        InvalidRecord: a text contains half of a surrogate pair, or its image markers are not as many as the images.
    """
    place, identity = None, ""
    for row in islice(read(), size):
        if row.place != place:  # further rows of a record belong together with its first
            place, identity = row.place, "" if row.images else content_identity(row)
        try:
            instruction = _instruction(prompt, row)
        except ValueError as error:
            report_or_raise(InvalidRecord(f"{path}, {row.place}: {error}", "fix the record"))
        else:
            yield replace(row, question=instruction, identity=identity)


def _instruction(prompt: str, row: Row) -> str:
    try:
        "".join([row.question, row.answer, *row.references, *row.images]).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"a text is not Unicode ({error.reason})") from error
    if markers.count(row.answer):
        raise ValueError(f"its answer has an image marker ({markers.IMAGE}), and a model answers with text")
    images = len(row.images)
    question = markers.placed(row.question, images)
    filled = markers.placed(fill_prompt(prompt, {**row.named, "question": question}), images)
    if question != row.question and not markers.without(filled).strip():
        raise ValueError("its question has no text besides image markers")
    return filled


def content_identity(row: Row) -> str:
    """Digest of what a record asks: question and options; of its other texts if it has neither. The prompt is no part of it."""
    options = row.details.get("options")
    asked = [row.question, *map(str, options)] if isinstance(options, list) else [row.question]
    content = json.dumps(asked if any(asked) else sorted(row.named.items()))
    return hashlib.sha256(content.encode()).hexdigest()


def fill_prompt(prompt: str, texts: Mapping[str, str]) -> str:
    """Replace each `{name}` in the prompt by the text of that name; unknown names stay as they are."""
    return re.sub(r"\{(\w+)\}", lambda found: texts.get(found[1], found[0]), prompt)


class FileRows(LazySamples):
    """The samples of a split, each made on access.

    Args:
        rows: the parsed records.
        split: prefix of the samples' ids.
        annotations: the annotation file, for error messages.
        images: the folder of the images.
        subfolder: this folder, if the split has its own; it becomes part of the images' identities.
        chosen: indices of the split's rows; None: all rows.
    """

    def __init__(
        self,
        rows: ArrowRows,
        split: str,
        *,
        annotations: Path,
        images: Path,
        subfolder: str = "",
        chosen: array[int] | None = None,
    ) -> None:
        self.rows, self.split, self.chosen = rows, split, chosen
        self.annotations, self.images, self.subfolder = annotations, images, subfolder

    def __len__(self) -> int:
        return len(self.rows) if self.chosen is None else len(self.chosen)

    def __iter__(self) -> Iterator[Sample]:
        """All samples in order, faster than by their indices."""
        numbered = enumerate(self.rows)
        for index, number in enumerate(range(len(self.rows)) if self.chosen is None else self.chosen):  # ascending
            row = next(row for found, row in numbered if found == number)
            yield self._sample(index, number, row)

    def state(self) -> str | None:
        """Digest of all that the samples depend on: the cached rows, and size and modification time of the image files.

        None where the rows are not cached, because they are few.
        """
        if not isinstance(self.rows.source, Path) or self.rows.folder is not None:
            return None
        chosen = "" if self.chosen is None else hashlib.blake2b(self.chosen.tobytes()).hexdigest()
        about = [self.rows.source.name, self.split, str(self.images.absolute()), self.subfolder, chosen]
        found = hashlib.blake2b(json.dumps(about).encode(), digest_size=32)
        for state in self.image_states():
            found.update(state)
        return found.hexdigest()

    def image_states(self) -> Iterator[bytes]:
        """The image files of all rows, also of those that other splits have, with their sizes and modification times."""
        folder = str(self.images)

        @lru_cache(maxsize=4096)  # rows in a row often share images
        def state(name: str) -> bytes:
            try:
                status = os.stat(os.path.join(folder, name))  # noqa: PTH116, PTH118 (a third of the time of a Path)
            except (OSError, ValueError):
                return f"{name}\0missing\0".encode(errors="surrogatepass")
            return f"{name}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ino}\0".encode(errors="surrogatepass")

        return (state(name) for names in self.rows.values("images") for name in names)

    def sample_at(self, index: int) -> Sample:
        """Make a sample from its row."""
        number = index if self.chosen is None else self.chosen[index]
        return self._sample(index, number, self.rows[number])

    def _sample(self, index: int, number: int, row: Mapping[str, Any]) -> Sample:
        images, sources, files = self.images_of(number, row)
        details = json.loads(row["details"]) if row["details"] != "{}" else {}
        if len(images) == 1 and "box" in details and all(is_finite(details.get(key)) for key in ("width", "height")):
            place = f"{self.annotations}, {row['place']}"
            images = (partial(_open_in_frame, images[0], details["width"], details["height"], place),)
        return Sample(
            sample_id=f"{self.split}-{index:05d}",
            question=row["question"],
            answer=row["answer"],
            references=tuple(row["references"]),
            images=images,
            details=details,
            sources=sources,
            files=files,
        )

    def images_of(self, number: int, row: Mapping[str, Any]) -> Images:
        """The images of row `number`."""
        paths = tuple(self.images / name for name in row["images"])
        names = [Path(self.subfolder, name).as_posix() if self.subfolder else name for name in row["images"]]
        place = f"{self.annotations}, {row['place']}"
        return tuple(partial(open_image, path, row=place) for path in paths), tuple(f"file:{n}" for n in names), paths


def _open_in_frame(opener: Callable[[], Image], width: Any, height: Any, place: str) -> Image:
    """Open an image whose box is given in a frame, which must have the image's proportions, or be the square around it.

    Raises:
        DmoleError: it has other proportions, so that the box would be at another place of the image.
    """
    image = opener()
    wide, high = image.size
    tolerance = ROUNDED * max(width, height, wide, high)
    # A square frame may be that of an image padded to a square, at any scale.
    if width != height and abs(width * high - height * wide) > tolerance:
        raise DmoleError(
            f"{place}: the image has {image.width} x {image.height} pixels, but its box is in {width:g} x {height:g}",
            "correct 'width' and 'height' of the record",
        )
    return image
