"""Data sets of the `datasets` library: an id on the Hugging Face hub, or local Arrow, parquet, JSON or image folders."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmole_cli.data.formats._fields import Record, letter_of, lettered, usable
from dmole_cli.data.formats._rows import FileRows, Pictures, Row, converted, divide, prompted, shares_of
from dmole_cli.data.images import open_bytes
from dmole_cli.data.sample import Sample
from dmole_cli.errors import DmoleError

if TYPE_CHECKING:
    from PIL.Image import Image

    from dmole_cli.data.card import TaskCard

BLOCK = 64  # rows that are read at once
FEW = 500  # rows up to which nothing is kept in the cache
KINDS = {".parquet": "parquet", ".arrow": "arrow", ".json": "json", ".jsonl": "json", ".csv": "csv"}
HINT = "look at the column map in [data] of the task card"

# `dataset` is a path (relative to --data-root or the card) if there is something, else an id on the hub, with its
# configuration `name` and `revision`. `train`, `validation`, `test` are names of its splits; the rest are its columns:
# `images` those with pictures (or lists of pictures), separated by commas; `question` may be empty where the prompt says it
# all; `answer` may hold a text, several of them, a class, or (where there are `choices`) the right option; `references` and
# `choices` are lists of texts; `details` names columns for the metric. `held_out` as for files.
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


def load(card: TaskCard, split: str, *, data_root: Path | None) -> Sequence[Sample]:
    """Read one split through `datasets`, which keeps it on disk; a split without a name has no rows.

    The prompt may name `{options}` where there are `choices`, and any column of texts.

    Raises:
        DmoleError: `datasets` is not installed, the data set, its split or a column is not there, or a row is not usable.
    """
    options = card.data
    part = options["train"] if card.holds_out(split) else options[split]
    if not part:
        return []
    data = _opened(options, part, data_root or card.path.parent)
    columns = [name.strip() for name in options["images"].split(",") if name.strip()]
    # As Arrow, so that nothing is decoded: a picture stays the bytes of its file.
    data = _with_columns(data, options, columns, card.path).with_format("arrow")
    size = getattr(card.sizes, split)
    shares = shares_of(card)
    divided = bool(shares) and (split == "train" or split in shares)
    title = f"{options['dataset']}, split {part}"
    rows = converted(
        partial(
            prompted,
            card.prompt,
            title,
            partial(_rows, data, options, columns, title),
            None if divided else size or None,
        ),
        key=[card.format, card.prompt, dict(options), None if divided else size, part],
        content=[data._fingerprint] if len(data) > FEW else [],
    )
    chosen = divide(rows, shares, size, split=split) if divided else None
    return _PictureRows(rows, split, annotations=Path(title), images=Path(), chosen=chosen, data=data, columns=columns)


def splits_of(path: Path) -> dict[str, dict[str, str]]:
    """What a local data set holds: split -> column -> `image`, `text`, `class`, `list` or `other`.

    Raises:
        DmoleError: `datasets` is not installed, or it cannot read the data set.
    """
    datasets = _library()
    try:
        if any((path / name).exists() for name in ("dataset_dict.json", "state.json")):
            found = datasets.load_from_disk(str(path))
        elif path.is_file():
            found = datasets.load_dataset(KINDS[path.suffix], data_files={"train": str(path)})
        else:
            found = datasets.load_dataset(str(path))
    except Exception as error:  # each of its readers has exceptions of its own
        why = str(error).strip().splitlines() or [type(error).__name__]
        raise DmoleError(f"cannot read the data set {path}: {why[0]}", "check the path after --from") from error
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


def _library() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DmoleError("the package 'datasets' is not installed", "pip install 'dmole[datasets]'") from error
    datasets.disable_progress_bars()
    return datasets


class _PictureRows(FileRows):
    """Rows whose pictures lie in the data set itself; they are known by their content."""

    def __init__(self, *args: Any, data: Any, columns: Sequence[str], **options: Any) -> None:
        super().__init__(*args, **options)
        self.data, self.columns = data, columns

    def pictures(self, number: int, row: Mapping[str, Any]) -> Pictures:
        """What opens a row's pictures, and the digests of their files."""
        place = f"{self.annotations}, {row['place']}"
        opened = tuple(
            partial(_picture, self.data, self.columns, number, index, place=place)
            for index in range(len(row["images"]))
        )
        return opened, tuple(f"sha256:{digest}" for digest in row["images"]), ()


def _picture(data: Any, columns: Sequence[str], number: int, index: int, *, place: str) -> Image:
    [record] = data[number : number + 1].to_pylist()
    return open_bytes(_bytes(_pictures(record, columns)[index]), row=place)


def _opened(options: Mapping[str, Any], part: str, root: Path) -> Any:
    name = options["dataset"]
    if not name:
        raise DmoleError("the task card names no data set", 'give [data] dataset = "folder", or an id on the hub')
    import datasets

    path = root / name
    bars = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        if any((path / name).exists() for name in ("dataset_dict.json", "state.json")):
            found = datasets.load_from_disk(str(path))
            splits = found if isinstance(found, dict) else {"train": found}
            if part not in splits:
                has = ", ".join(splits)
                raise DmoleError(
                    f"the data set {path} has no split '{part}' (it has: {has})", "check [data] of the card"
                )
            return splits[part]
        if path.is_file() and path.suffix in KINDS:
            return datasets.load_dataset(KINDS[path.suffix], data_files={"train": str(path)}, split=part)
        if path.exists():
            return datasets.load_dataset(str(path), split=part)
        return datasets.load_dataset(name, options["name"] or None, split=part, revision=options["revision"] or None)
    except DmoleError:
        raise
    except Exception as error:  # each of its readers has exceptions of its own
        why = str(error).strip().splitlines() or [type(error).__name__]
        where = f"{path}" if path.exists() else f"{name} (there is no {path}, so it was looked for on the hub)"
        raise DmoleError(
            f"cannot read split '{part}' of the data set {where}: {why[0]}", "check `dataset` and the splits in [data]"
        ) from error
    finally:
        if not bars:
            datasets.enable_progress_bars()


def _with_columns(data: Any, options: Mapping[str, Any], images: Sequence[str], card: Path) -> Any:
    """The data set with the columns that are needed, or named in the prompt because they hold texts."""
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
            raise DmoleError(f"the column '{name}' of the data set holds no pictures but {kind}", f"{HINT}, {card}")
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
        choices = record.texts(options["choices"]) if options["choices"] else []
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
            images=tuple(hashlib.sha256(_bytes(picture)).hexdigest() for picture in _pictures(value, columns)),
            details=details,
            named=record.named() | ({"options": lettered(choices)} if choices else {}),
        )

    return usable(((str(number), value) for number, value in enumerate(values)), row)


def _answers(record: Record, key: str, choices: list[str], classes: list[str] | None) -> list[str]:
    value = record.value[key]
    if classes is not None and isinstance(value, int):
        return [classes[value]]
    if choices:
        letter = letter_of(value, choices)
        if letter is None:
            record.refuse(f"the answer {value!r} is none of the {len(choices)} options")
        return [letter]
    return record.texts(key) if isinstance(value, list) else [record.text(key)]


def _pictures(record: Mapping[str, Any], columns: Sequence[str]) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = []
    for name in columns:
        value = record[name]
        found += value if isinstance(value, list) else [value] if value is not None else []
    return found


def _bytes(picture: Mapping[str, Any]) -> bytes:
    content = picture.get("bytes")
    if content is not None:
        return content
    try:
        return Path(picture["path"]).read_bytes()
    except OSError as error:
        raise DmoleError(
            f"cannot read the picture {picture['path']}: {error.strerror}", "check the data set"
        ) from error
