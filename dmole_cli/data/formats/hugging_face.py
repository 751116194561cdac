"""Data sets of the `datasets` library: an id on the Hugging Face hub, or local Arrow, parquet, JSON or image folders."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmole_cli.data.formats._arrow import Row, arrow_rows
from dmole_cli.data.formats._boxes import check_details
from dmole_cli.data.formats._choices import (
    UNDECLARED,
    OptionReader,
    check_first_index,
    implied_first_index,
    number_of,
)
from dmole_cli.data.formats._fields import Record, lettered
from dmole_cli.data.formats._held_out import held_out_shares, rows_of_split
from dmole_cli.data.formats._image_values import are_images, image_bytes, is_no_image
from dmole_cli.data.formats._recognition import (
    ANSWER,
    CAPTION,
    CAPTION_PROMPT,
    CHOICES,
    LETTER_PROMPT,
    QUESTION,
    first_of,
    no_format,
)
from dmole_cli.data.formats._rows import FileRows, Images, with_prompts
from dmole_cli.data.formats._tables import SPLIT_NAMES, open_split, splits_at
from dmole_cli.data.formats.base import PEEKED, TABLES, Guess, Source
from dmole_cli.data.images import open_bytes
from dmole_cli.data.invalid_records import valid_records
from dmole_cli.data.sample import Sample
from dmole_cli.errors import DmoleError
from dmole_cli.metrics.base import load_metric

if TYPE_CHECKING:
    from PIL.Image import Image

    from dmole_cli.data.card import TaskCard

BLOCK = 64  # rows that are read at a time
FEW = 500  # rows up to which nothing is cached
HINT = "check the column names in [data] of the task card"

# `dataset` is a path (relative to --data-root or the card) if it exists, else an id on the hub, with its configuration
# `name` and `revision`. `train`, `validation`, `test` are names of its splits; the rest are names of columns: `images` those
# with images (or lists of images), separated by commas; `question` may be empty if the prompt is the whole instruction;
# `answer` contains a text, several texts, a class, or (with `choices`) the correct option; `references` and `choices` are
# lists of texts; `details` names columns for the metric. Images are embedded or named by paths, which start at `folder` if it
# is given, else beside the data set. For `first_index` see `_choices.OptionReader`, for `held_out` `_rows.FILE_OPTIONS`.
OPTIONS: Mapping[str, Any] = {
    "dataset": "",
    "name": "",
    "revision": "",
    "train": "train",
    "validation": "validation",
    "test": "test",
    "images": "image",
    "question": "question",
    "answer": "answer",
    "references": "",
    "choices": "",
    "details": "",
    "folder": "",
    "first_index": UNDECLARED,
    "held_out": 0.0,
    "held_out_test": 0.0,
}
FILLS_PROMPT = True


def recognise(source: Source) -> Guess | None:
    """A folder or a table that `datasets` can read, with a column for the answer."""
    if not source.path.is_dir() and source.path.suffix not in TABLES:
        return None
    try:
        found = splits_at(source.path)
    except DmoleError as error:
        return Guess(1, problem=error)
    first = next(iter(found.values()))
    folders = [source.path if source.path.is_dir() else source.path.parent]
    kinds = {name: _kind_of_column(first, name, folders) for name in first.column_names}
    texts = [name for name, kind in kinds.items() if kind in ("text", "class", "list")]
    question = first_of([name for name in QUESTION if name not in ANSWER], texts)
    answer, choices = first_of(ANSWER, texts), first_of(CHOICES, [n for n, kind in kinds.items() if kind != "image"])
    if not answer:
        why = f"its columns are {', '.join(sorted(kinds))}, and none of them is known to be an answer"
        return Guess(8, problem=no_format(source.path, why))
    splits = {split: first_of(names, found) for split, names in SPLIT_NAMES.items()}
    splits["train"] = splits["train"] or next(iter(found))
    images = [name for name, kind in kinds.items() if kind == "image"]
    if not question and not images:
        return Guess(8, problem=no_format(source.path, f"its columns {', '.join(kinds)} have no question and no image"))
    data: dict[str, Any] = {"dataset": "", **splits, "images": ",".join(images), "question": question, "answer": answer}
    data |= {"choices": choices} if choices else {}
    # Only paths need a folder; `tasks new` searches for it.
    data |= {"folder": ""} if any(_kind(first.features[name]) not in ("image", "other") for name in images) else {}
    why = f"`datasets` reads it, with columns {', '.join(kinds)}"
    if choices:
        first_index = _implied_first_index(first, choices, answer)
        data |= {"first_index": first_index} if first_index != UNDECLARED else {}
        return Guess(8, why, data, LETTER_PROMPT, "multiple_choice", source_option="dataset")
    captions = not question and answer in CAPTION
    prompt, metric = (CAPTION_PROMPT, "cider") if captions else ("", "")
    return Guess(8, why, data, prompt, metric, source_option="dataset", has_question=bool(question))


def _kind_of_column(data: Any, name: str, folders: Sequence[Path]) -> str:
    """The kind of a column by its type, and of one whose type does not tell it by its values."""
    kind = _kind(data.features[name])
    known = kind in ("image", "class") or (kind == "text" and name in (*QUESTION, *ANSWER))
    return "image" if not known and are_images(_peek(data, name), folders) else kind


def _implied_first_index(data: Any, choices: str, answer: str) -> int:
    blocks = data.select_columns([choices, answer]).with_format("arrow").iter(batch_size=FEW)
    return implied_first_index((row[answer], number_of(row[choices])) for block in blocks for row in block.to_pylist())


def load(card: TaskCard, split: str, *, data_root: Path | None) -> Sequence[Sample]:
    """Read a split through `datasets`, which keeps the data on disk.

    The prompt may name `{options}` if there are `choices`, and any column of texts.

    Raises:
        DmoleError: `datasets` is not installed; the data set, its split or a column is missing; or a row is invalid.
    """
    options = card.data
    part = options["train"] if card.holds_out(split) else options[split]
    if not part:
        return []
    root = data_root or card.path.parent
    check_first_index(card)
    data = open_split(options, part, root)
    columns = [name.strip() for name in options["images"].split(",") if name.strip()]
    # As Arrow, so that no image is decoded: it stays the bytes of its file.
    data = _with_columns(data, options, columns, card.path).with_format("arrow")
    folders = _folders(options, root)
    _check_images(data, columns, folders, card.path)
    size = getattr(card.sizes, split)
    shares = held_out_shares(card)
    divided = bool(shares) and (split == "train" or split in shares)
    title = f"{options['dataset']}, split {part}"
    parser = _Parser(options, columns, title, folders, load_metric(card.metric).NEEDS_DETAILS)
    # The digest of the data set covers content, but not the files that a column of paths names.
    cached = len(data) > FEW and data.cache_files and all(_kind(data.features[name]) == "image" for name in columns)
    rows = arrow_rows(
        partial(with_prompts, card.prompt, title, partial(_rows, data, parser), None if divided else size or None),
        key=[card.format, card.prompt, card.metric, dict(options), None if divided else size, part],
        content=[data._fingerprint] if cached else [],
    )
    chosen = rows_of_split(rows, shares, size, split=split) if divided else None
    return _EmbeddedImageRows(
        rows,
        split,
        annotations=Path(title),
        images=Path(),
        chosen=chosen,
        data=data,
        columns=columns,
        folders=folders,
    )


def _folders(options: Mapping[str, Any], root: Path) -> list[Path]:
    """Where paths of images start: at `folder` if the card has it, else at the data set's own folder, else at the root."""
    if options["folder"]:
        return [root / options["folder"]]
    path = root / options["dataset"]
    return list(dict.fromkeys([path if path.is_dir() else path.parent, root]))


class _EmbeddedImageRows(FileRows):
    """Rows whose images are part of the data set or named in it; an image's identity is the digest of its content."""

    def __init__(self, *args: Any, data: Any, columns: Sequence[str], folders: Sequence[Path], **options: Any) -> None:
        super().__init__(*args, **options)
        self.data, self.columns, self.folders = data, columns, folders

    def image_states(self) -> Iterator[bytes]:
        """None: the rows have the digests of the images."""
        return iter(())

    def images_of(self, number: int, row: Mapping[str, Any]) -> Images:
        """The images of row `number`; they have no files."""
        place = f"{self.annotations}, {row['place']}"
        opened = tuple(
            partial(_open_image, self.data, self.columns, self.folders, number, index, place=place)
            for index in range(len(row["images"]))
        )
        return opened, tuple(f"sha256:{digest}" for digest in row["images"]), ()


def _open_image(
    data: Any, columns: Sequence[str], folders: Sequence[Path], number: int, index: int, *, place: str
) -> Image:
    [record] = data[number : number + 1].to_pylist()
    return open_bytes(image_bytes(_images(record, columns)[index], folders), row=place)


def _with_columns(data: Any, options: Mapping[str, Any], images: Sequence[str], card: Path) -> Any:
    """Select the columns that [data] names, and all columns of texts, which the prompt may name."""
    named = [options[key] for key in ("question", "answer", "references", "choices")] + options["details"].split(",")
    wanted = {name.strip() for name in [*named, *images] if name.strip()}
    missing = sorted(wanted - set(data.column_names))
    if missing:
        raise DmoleError(
            f"the data set has no column '{missing[0]}' (it has: {', '.join(data.column_names)})", f"{HINT}, {card}"
        )
    texts = {name for name, kind in data.features.items() if _kind(kind) == "text" and "string" in kind.dtype}
    return data.select_columns([name for name in data.column_names if name in wanted | texts])


def _check_images(data: Any, columns: Sequence[str], folders: Sequence[Path], card: Path) -> None:
    """Raise an error if a column of images contains something else; where its type does not tell, its first values do."""
    for name in columns:
        if _kind(data.features[name]) == "image":
            continue
        found = [value for value in _peek(data, name) if not is_no_image(value)]
        if found and not are_images(found, folders):
            kind = getattr(data.features[name], "feature", data.features[name])
            raise DmoleError(f"the column '{name}' of the data set contains {kind}, not images", f"{HINT}, {card}")


def _peek(data: Any, name: str) -> list[Any]:
    """The first values of a column; of lists their elements."""
    values = data.select_columns([name]).with_format("arrow")[:PEEKED].column(name).to_pylist()
    return [item for value in values for item in (value if isinstance(value, list) else [value])]


def _kind(feature: Any) -> str:
    """What a column contains: `image`, `text`, `class`, `list` or `other`."""
    import datasets

    inner = getattr(feature, "feature", feature)
    if isinstance(inner, datasets.Image):
        return "image"
    if isinstance(feature, datasets.ClassLabel):
        return "class"
    if isinstance(inner, datasets.Value):
        return "list" if inner is not feature else "text"
    return "other"


@dataclass(frozen=True)
class _Parser:
    """Parses the rows of a data set.

    Attributes:
        options: the card's [data].
        columns: those with images.
        title: of the data set, for error messages.
        folders: where paths of images start.
        needed: details that the card's metric needs.
    """

    options: Mapping[str, Any]
    columns: Sequence[str]
    title: str
    folders: Sequence[Path]
    needed: Sequence[str]

    def row(self, record: Record, reader: OptionReader) -> Row:
        """The row of a record."""
        options, value, choices = self.options, record.value, list[str]()
        details = {name.strip(): value[name.strip()] for name in options["details"].split(",") if name.strip()}
        check_details(record, details, self.needed)
        if options["choices"]:
            choices, letter = reader.read(record, options["choices"], options["answer"])
            details |= {"options": choices, "answer": letter}
        answers = [letter] if choices else record.answers(options["answer"])
        return Row(
            record.place,
            question=record.text(options["question"]) if options["question"] else "",
            answer=answers[0],
            references=tuple(record.answers(options["references"]) if options["references"] else answers),
            images=tuple(self._digests(record)),
            details=details,
            named=record.named_texts() | ({"options": lettered(choices)} if choices else {}),
        )

    def _digests(self, record: Record) -> Iterator[str]:
        for image in _images(record.value, self.columns):
            if image is None:
                record.invalid("an image in front of another is null", "remove the null or the row")
            try:
                yield hashlib.sha256(image_bytes(image, self.folders)).hexdigest()
            except DmoleError as error:
                record.invalid(error.message, error.hint, kind="image")


def _rows(data: Any, parser: _Parser) -> Iterator[Row]:
    """The rows of all valid records."""
    values = (value for block in data.iter(batch_size=BLOCK) for value in block.to_pylist())
    reader = OptionReader(parser.options["first_index"])
    classes = {name: found for name, kind in data.features.items() if (found := _class_names(kind))}

    def row(number: str, value: Any) -> Iterator[Row]:
        record = Record(Path(parser.title), f"row {number}", value, hint=HINT)
        for name in ("question", "answer", "references"):
            if (column := parser.options[name]) in classes:
                value[column] = _named_classes(record, column, classes[column])
        yield parser.row(record, reader)

    return valid_records(((str(number), value) for number, value in enumerate(values)), row)


def _class_names(feature: Any) -> list[str]:
    """Names of the classes of a column, also of one that contains lists of classes; empty for other columns."""
    import datasets

    inner = getattr(feature, "feature", feature)
    return inner.names if isinstance(inner, datasets.ClassLabel) else []


def _named_classes(record: Record, column: str, names: Sequence[str]) -> Any:
    """A class, or a list of classes, by name; null stays null."""
    value = record.value[column]
    codes = value if isinstance(value, list) else [value]
    for code in codes:
        if code is not None and code not in range(len(names)):
            record.invalid(f"the class {code} in '{column}' is not one of 0 to {len(names) - 1}")
    found = [None if code is None else names[code] for code in codes]
    return found if isinstance(value, list) else found[0]


def _images(record: Mapping[str, Any], columns: Sequence[str]) -> list[Any]:
    """The images of a row. A null at the end of a list fills it up and is no image; elsewhere in a list it stays null."""
    found: list[Any] = []
    for name in columns:
        value = record[name]
        images = [None if is_no_image(image) else image for image in (value if isinstance(value, list) else [value])]
        while images and images[-1] is None:
            images.pop()
        found += images
    return found
