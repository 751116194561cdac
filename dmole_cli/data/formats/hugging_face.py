"""Data sets of the `datasets` library: an id on the Hugging Face hub, or local Arrow, parquet, JSON or image folders."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmole_cli.data.formats._arrow import Row, arrow_rows
from dmole_cli.data.formats._fields import Record, letter_of, lettered
from dmole_cli.data.formats._held_out import held_out_shares, rows_of_split
from dmole_cli.data.formats._recognition import (
    ANSWER,
    CAPTION_PROMPT,
    CHOICES,
    LETTER_PROMPT,
    QUESTION,
    first_of,
    no_format,
)
from dmole_cli.data.formats._rows import FileRows, Images, with_prompts
from dmole_cli.data.formats.base import TABLES, Guess, Source
from dmole_cli.data.images import open_bytes
from dmole_cli.data.invalid_records import valid_records
from dmole_cli.data.sample import Sample
from dmole_cli.errors import DmoleError, first_line

if TYPE_CHECKING:
    from PIL.Image import Image

    from dmole_cli.data.card import TaskCard

BLOCK = 64  # rows that are read at a time
FEW = 500  # rows up to which nothing is cached
KINDS = {".parquet": "parquet", ".arrow": "arrow", ".json": "json", ".jsonl": "json", ".csv": "csv"}
HINT = "check the column names in [data] of the task card"

# `dataset` is a path (relative to --data-root or the card) if it exists, else an id on the hub, with its configuration
# `name` and `revision`. `train`, `validation`, `test` are names of its splits; the rest are names of columns: `images` those
# with images (or lists of images), separated by commas; `question` may be empty if the prompt is the whole instruction;
# `answer` contains a text, several texts, a class, or (with `choices`) the correct option; `references` and `choices` are
# lists of texts; `details` names columns for the metric. For `held_out` see `_rows.FILE_OPTIONS`.
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
    "held_out": 0.0,
    "held_out_test": 0.0,
}
FILLS_PROMPT = True


SPLIT_NAMES = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}


def recognise(source: Source) -> Guess | None:
    """A folder or a table that `datasets` can read, with a column for the answer."""
    if not source.path.is_dir() and source.path.suffix not in TABLES:
        return None
    try:
        found = splits_of(source.path)
    except DmoleError as error:
        return Guess(1, problem=error)
    features = next(iter(found.values()))
    texts = [name for name, kind in features.items() if kind in ("text", "class", "list")]
    question = first_of([name for name in QUESTION if name not in ANSWER], texts)
    answer, choices = first_of(ANSWER, texts), first_of(CHOICES, texts)
    if not answer:
        why = f"its columns are {', '.join(sorted(features))}, and none of them is known to be an answer"
        return Guess(8, problem=no_format(source.path, why))
    splits = {split: first_of(names, found) for split, names in SPLIT_NAMES.items()}
    splits["train"] = splits["train"] or next(iter(found))
    images = ",".join(name for name, kind in features.items() if kind == "image")
    data = {"dataset": "", **splits, "images": images, "question": question, "answer": answer}
    data |= {"choices": choices} if choices else {}
    if choices:
        prompt, metric = LETTER_PROMPT, "multiple_choice"
    else:
        prompt, metric = ("", "") if question else (CAPTION_PROMPT, "cider")
    why = f"`datasets` reads it, with columns {', '.join(features)}"
    return Guess(8, why, data, prompt, metric, source_option="dataset")


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
    data = _opened(options, part, data_root or card.path.parent)
    columns = [name.strip() for name in options["images"].split(",") if name.strip()]
    # As Arrow, so that no image is decoded: it stays the bytes of its file.
    data = _with_columns(data, options, columns, card.path).with_format("arrow")
    size = getattr(card.sizes, split)
    shares = held_out_shares(card)
    divided = bool(shares) and (split == "train" or split in shares)
    title = f"{options['dataset']}, split {part}"
    read = partial(_rows, data, options, columns, title)
    rows = arrow_rows(
        partial(with_prompts, card.prompt, title, read, None if divided else size or None),
        key=[card.format, card.prompt, dict(options), None if divided else size, part],
        content=[data._fingerprint] if len(data) > FEW else [],
    )
    chosen = rows_of_split(rows, shares, size, split=split) if divided else None
    return _EmbeddedImageRows(
        rows, split, annotations=Path(title), images=Path(), chosen=chosen, data=data, columns=columns
    )


def splits_of(path: Path) -> dict[str, dict[str, str]]:
    """Describe a local data set: split -> column -> `image`, `text`, `class`, `list` or `other`.

    Raises:
        DmoleError: `datasets` is not installed or cannot read the data set.
    """
    datasets = _library()
    try:
        if _is_saved(path):
            found = datasets.load_from_disk(str(path))
        elif path.is_file():
            found = datasets.load_dataset(KINDS[path.suffix], data_files={"train": str(path)})
        else:
            found = datasets.load_dataset(str(path))
    except Exception as error:  # each reader of the library raises exceptions of its own
        raise DmoleError(f"cannot read the data set {path}: {first_line(error)}", "check the path") from error
    splits = found if isinstance(found, dict) else {"train": found}

    def kind(feature: Any) -> str:
        inner = getattr(feature, "feature", feature)
        if isinstance(inner, datasets.Image):
            return "image"
        if isinstance(feature, datasets.ClassLabel):
            return "class"
        if isinstance(inner, datasets.Value):
            return "list" if inner is not feature else "text"
        return "other"

    return {split: {name: kind(value) for name, value in data.features.items()} for split, data in splits.items()}


def _is_saved(path: Path) -> bool:
    """Whether `save_to_disk` wrote the folder."""
    return any((path / name).exists() for name in ("dataset_dict.json", "state.json"))


def _library() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DmoleError("the package 'datasets' is not installed", "pip install 'dmole[datasets]'") from error
    datasets.disable_progress_bars()
    return datasets


class _EmbeddedImageRows(FileRows):
    """Rows whose images are part of the data set; an image's identity is the digest of its content."""

    def __init__(self, *args: Any, data: Any, columns: Sequence[str], **options: Any) -> None:
        super().__init__(*args, **options)
        self.data, self.columns = data, columns

    def images_of(self, number: int, row: Mapping[str, Any]) -> Images:
        """The images of row `number`; they have no files."""
        place = f"{self.annotations}, {row['place']}"
        opened = tuple(
            partial(_open_image, self.data, self.columns, number, index, place=place)
            for index in range(len(row["images"]))
        )
        return opened, tuple(f"sha256:{digest}" for digest in row["images"]), ()


def _open_image(data: Any, columns: Sequence[str], number: int, index: int, *, place: str) -> Image:
    [record] = data[number : number + 1].to_pylist()
    return open_bytes(_bytes(_images(record, columns)[index]), row=place)


def _opened(options: Mapping[str, Any], part: str, root: Path) -> Any:
    """One split of the data set."""
    name = options["dataset"]
    if not name:
        raise DmoleError("the task card names no data set", 'give [data] dataset = "folder", or an id on the hub')
    import datasets

    path = root / name
    bars = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        if _is_saved(path):
            found = datasets.load_from_disk(str(path))
            splits = found if isinstance(found, dict) else {"train": found}
            if part not in splits:
                message = f"the data set {path} has no split '{part}' (it has: {', '.join(splits)})"
                raise DmoleError(message, "check [data] of the card")
            return splits[part]
        if path.is_file() and path.suffix in KINDS:
            return datasets.load_dataset(KINDS[path.suffix], data_files={"train": str(path)}, split=part)
        if path.exists():
            return datasets.load_dataset(str(path), split=part)
        return datasets.load_dataset(name, options["name"] or None, split=part, revision=options["revision"] or None)
    except DmoleError:
        raise
    except Exception as error:  # each reader of the library raises exceptions of its own
        where = f"{path}" if path.exists() else f"{name} ({path} does not exist, so the hub was searched)"
        raise DmoleError(
            f"cannot read split '{part}' of the data set {where}: {first_line(error)}",
            "check `dataset` and the splits in [data]",
        ) from error
    finally:
        if not bars:
            datasets.enable_progress_bars()


def _with_columns(data: Any, options: Mapping[str, Any], images: Sequence[str], card: Path) -> Any:
    """Select the columns that [data] names, and all columns of texts, which the prompt may name."""
    import datasets

    named = [options[key] for key in ("question", "answer", "references", "choices")] + options["details"].split(",")
    wanted = {name.strip() for name in [*named, *images] if name.strip()}
    missing = sorted(wanted - set(data.column_names))
    if missing:
        raise DmoleError(
            f"the data set has no column '{missing[0]}' (it has: {', '.join(data.column_names)})", f"{HINT}, {card}"
        )
    for name in images:
        kind = getattr(data.features[name], "feature", data.features[name])
        if not isinstance(kind, datasets.Image):
            raise DmoleError(f"the column '{name}' of the data set contains {kind}, not images", f"{HINT}, {card}")
    texts = {
        name for name, kind in data.features.items() if isinstance(kind, datasets.Value) and kind.dtype == "string"
    }
    return data.select_columns([name for name in data.column_names if name in wanted | texts])


def _rows(data: Any, options: Mapping[str, Any], columns: Sequence[str], title: str) -> Iterator[Row]:
    import datasets

    kind = data.features[options["answer"]]
    classes = kind.names if isinstance(kind, datasets.ClassLabel) else None
    values = (value for block in data.iter(batch_size=BLOCK) for value in block.to_pylist())

    def row(number: str, value: Any) -> Iterator[Row]:
        record = Record(Path(title), f"row {number}", value, hint=HINT)
        choices = record.options(options["choices"]) if options["choices"] else []
        answers = _answers(record, options["answer"], choices, classes)
        references = record.texts(options["references"]) if options["references"] else answers
        details = {name.strip(): value[name.strip()] for name in options["details"].split(",") if name.strip()}
        if choices:
            details |= {"options": choices, "answer": answers[0]}
        yield Row(
            f"row {number}",
            question=record.text(options["question"]) if options["question"] else "",
            answer=answers[0],
            references=tuple(references),
            images=tuple(hashlib.sha256(_bytes(image)).hexdigest() for image in _images(value, columns)),
            details=details,
            named=record.named_texts() | ({"options": lettered(choices)} if choices else {}),
        )

    return valid_records(((str(number), value) for number, value in enumerate(values)), row)


def _answers(record: Record, key: str, choices: list[str], classes: list[str] | None) -> list[str]:
    value = record.value[key]
    if classes is not None and isinstance(value, int):
        return [classes[value]]
    if choices:
        letter = letter_of(value, choices)
        if letter is None:
            record.invalid(f"the answer {value!r} is none of the {len(choices)} options")
        return [letter]
    return record.texts(key) if isinstance(value, list) else [record.text(key)]


def _images(record: Mapping[str, Any], columns: Sequence[str]) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = []
    for name in columns:
        value = record[name]
        found += value if isinstance(value, list) else [value] if value is not None else []
    return found


def _bytes(image: Mapping[str, Any]) -> bytes:
    content = image.get("bytes")
    if content is not None:
        return content
    try:
        return Path(image["path"]).read_bytes()
    except OSError as error:
        raise DmoleError(f"cannot read the image {image['path']}: {error.strerror}", "check the data set") from error
