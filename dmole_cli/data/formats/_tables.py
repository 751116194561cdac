"""Opens data sets of the `datasets` library; texts in CSV files stay the texts that the file has."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dmole_cli.errors import DmoleError, first_line

KINDS = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".json": "json",
    ".jsonl": "json",
    ".csv": "csv",
    ".tsv": "csv",
}
SEPARATORS = {".csv": ",", ".tsv": "\t"}
IMAGE_TABLE = "metadata.csv"  # lists the files of an image folder with further columns
FILE_NAME = "file_name"  # its column of paths
SPLIT_NAMES = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}


def library() -> Any:
    """The `datasets` library, without its progress bars.

    Raises:
        DmoleError: it is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise DmoleError("the package 'datasets' is not installed", "pip install 'dmole[datasets]'") from error
    datasets.disable_progress_bars()
    return datasets


def splits_at(path: Path, part: str | None = None) -> Mapping[str, Any]:
    """All splits of a local file or folder; a file is the split `train`.

    Args:
        path: the file or folder.
        part: also read this part of a split, as `datasets` writes it: `train[:80%]`.

    Raises:
        DmoleError: `datasets` is not installed or cannot read the file or folder.
    """
    datasets = library()
    name, more = (KINDS[path.suffix], {"data_files": {"train": str(path)}}) if path.is_file() else (str(path), {})
    with _reading(f"cannot read the data set {path}", "check the path"):
        if _is_saved(path):
            found = datasets.load_from_disk(str(path))
        elif path.is_dir() and (tables := sorted(path.rglob(IMAGE_TABLE))):
            return _image_tables(path, tables)
        elif part and set(part) & set("[+"):
            return {part: datasets.load_dataset(name, split=part, **more, **_csv_options(path))}
        else:
            found = datasets.load_dataset(name, **more, **_csv_options(path))
    return found if isinstance(found, dict) else {"train": found}


def open_split(options: Mapping[str, Any], part: str, root: Path) -> Any:
    """One split of the data set that a card names.

    Args:
        options: the card's [data]: `dataset` is a path if it exists, else an id on the hub with `name` and `revision`.
        part: the split, by its name in the data set.
        root: the folder that the path starts at.

    Raises:
        DmoleError: the data set or its split is missing or unreadable.
    """
    name = options["dataset"]
    if not name:
        raise DmoleError("the task card names no data set", 'give [data] dataset = "folder", or an id on the hub')
    path = root / name
    if not path.exists():
        where = f"{name} ({path} does not exist, so the hub was searched)"
        datasets = library()
        with _reading(
            f"cannot read split '{part}' of the data set {where}", "check `dataset` and the splits in [data]"
        ):
            revision = options["revision"] or None
            return datasets.load_dataset(name, options["name"] or None, split=part, revision=revision)
    if path.is_file() and path.suffix not in KINDS:
        raise DmoleError(f"the data set {path} is no table", f"files end in {', '.join(KINDS)}")
    splits = splits_at(path, part)
    if part not in splits:
        message = f"the data set {path} has no split '{part}' (it has: {', '.join(splits)})"
        raise DmoleError(message, "check [data] of the card")
    return splits[part]


@contextmanager
def _reading(message: str, hint: str) -> Iterator[None]:
    try:
        yield
    except DmoleError:
        raise
    except Exception as error:  # each reader of the library raises exceptions of its own
        raise DmoleError(f"{message}: {first_line(error)}", hint) from error


def _is_saved(path: Path) -> bool:
    """Whether `save_to_disk` wrote the folder."""
    return any((path / name).exists() for name in ("dataset_dict.json", "state.json"))


def _csv_options(path: Path) -> dict[str, Any]:
    """Options by which all columns of a CSV file, or of a folder of such files, are texts; empty for other files.

    Otherwise 007 would be read as 7, 3 as 3.0 in a column with an empty field, and "NA" as a missing value.
    """
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.suffix in KINDS)
    if not files or any(file.suffix not in SEPARATORS for file in files):
        return {}
    separator = SEPARATORS[files[0].suffix]
    columns = _header(files[0], separator)
    datasets = library()
    features = datasets.Features({name: datasets.Value("string") for name in columns})
    # A blank line is no record; a field that is missing at the end of a line is null.
    return {"sep": separator, "features": features, "keep_default_na": False, "encoding": "utf-8-sig"}


def _header(path: Path, separator: str) -> list[str]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        columns = next(csv.reader(file, delimiter=separator), [])
    if not columns or len(set(columns)) < len(columns) or not all(columns):
        raise DmoleError(
            f"the first line of {path} must name its columns, each once", "add a line such as image,question,answer"
        )
    return columns


def _image_tables(folder: Path, tables: list[Path]) -> dict[str, Any]:
    """The splits of an image folder with tables of texts: the table in `train/` is of the split `train`."""
    datasets = library()
    found: dict[str, Any] = {}
    for table in tables:
        columns = _header(table, ",")
        if FILE_NAME not in columns:
            raise DmoleError(f"{table} has no column '{FILE_NAME}'", f"it has: {', '.join(columns)}")
        with table.open(encoding="utf-8-sig", newline="") as file:
            rows = [row for row in csv.DictReader(file) if any(row.values())]
        values: dict[str, list[Any]] = {name: [row[name] for row in rows] for name in columns if name != FILE_NAME}
        values["image"] = [
            {"bytes": None, "path": str((table.parent / (row[FILE_NAME] or "")).absolute())} for row in rows
        ]
        kinds = {name: datasets.Value("string") for name in values} | {"image": datasets.Image(decode=False)}
        part = datasets.Dataset.from_dict(values, features=datasets.Features(kinds))
        split = _split_of(table.parent.relative_to(folder))
        found[split] = datasets.concatenate_datasets([found[split], part]) if split in found else part
    return found


def _split_of(folder: Path) -> str:
    """The split that a folder's name stands for, `train` if it stands for none."""
    first = folder.parts[0].lower() if folder.parts else ""
    return next((split for split, names in SPLIT_NAMES.items() if first in names), "train")
