"""Test records of MLLM-CL (MLLM-DCL, MLLM-ACL): CoIN's fields, several answers, or answers in a table beside the file."""

from __future__ import annotations

import csv
from ast import literal_eval
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmole_cli.data.formats._arrow import Row
from dmole_cli.data.formats._fields import MissingAnnotations, Record, identity
from dmole_cli.data.formats._json import records
from dmole_cli.data.formats._lookup import indexed
from dmole_cli.data.formats._rows import FILE_OPTIONS, load_rows
from dmole_cli.data.formats.base import Guess, Source
from dmole_cli.data.invalid_records import valid_records
from dmole_cli.data.sample import Sample
from dmole_cli.errors import DmoleError

if TYPE_CHECKING:
    from dmole_cli.data.card import TaskCard

HINT = 'a record is {"question_id": "7", "image": "...", "text": "What colour?", "answer": "red"}; the answer may be a list'
SEPARATORS = {".tsv": "\t", ".csv": ","}
# Tables of VLMEvalKit contain images as texts; csv's own limit is 128 KB a field.
LONGEST_FIELD = 1 << 26

# `test_annotations`: a table (.tsv, .csv) with the answers: the record `ALL_7` has those of row 7, counted from 0. `details`:
# fields of the record, or columns of its row, that the metric needs, separated by commas. `yes_no` and `other`: the texts
# that `{instruction}` stands for in the prompt if the answer is Yes or No, and otherwise.
OPTIONS: Mapping[str, Any] = {**FILE_OPTIONS, "test_annotations": "", "details": "", "yes_no": "", "other": ""}
FILLS_PROMPT = True


def recognise(source: Source) -> Guess | None:
    """None: without the options of a card, its records are those of CoIN."""
    return None


def load(card: TaskCard, split: str, *, data_root: Path | None) -> Sequence[Sample]:
    """Read a split's records (a JSON array or JSON lines); the first of several answers is the training answer.

    Raises:
        DmoleError: a file is missing or unreadable, a record is invalid, or its row is missing in the table.
    """
    read = partial(_read, options=card.data)
    return load_rows(
        card, split, data_root=data_root, read=read, other_files=[f"{split}_annotations"] * (split == "test")
    )


def _read(path: Path, other_files: Mapping[str, Path], *, options: Mapping[str, Any]) -> Iterator[Row]:
    details = [name.strip() for name in options["details"].split(",") if name.strip()]
    make = partial(_row, details=details, options=options)
    if not other_files:
        yield from valid_records(records(path), lambda place, value: [make(Record(path, place, value, hint=HINT))])
        return
    [table] = other_files.values()
    missing = MissingAnnotations(table, "answer")

    with indexed(_answered_rows(table, columns=["answer", *details])) as rows:

        def completed(place: str, value: Any) -> Iterator[Row]:
            record = Record(path, place, value, hint=HINT)
            name = record.text("question_id")
            for columns in rows.all(name.rpartition("_")[2]):  # at most one
                yield make(Record(path, place, record.value | columns, hint=HINT))
                return
            missing.add(name)

        yield from valid_records(records(path), completed)
    missing.raise_if_any()


def _answered_rows(table: Path, *, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (number of the row, those of its columns that are not empty) of each row with an answer.

    Raises:
        DmoleError: the table is unreadable, or has no column `answer`.
    """
    if table.suffix not in SEPARATORS:
        raise DmoleError(f"{table} is not a table", f"a table ends in {' or '.join(SEPARATORS)}")
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_FIELD))
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, delimiter=SEPARATORS[table.suffix])
            if "answer" not in (rows.fieldnames or ()):
                raise DmoleError(
                    f"{table} has no column 'answer' (it has: {', '.join(rows.fieldnames or ())})",
                    "its first line names the columns, and row 0 is the next line",
                )
            for number, row in enumerate(rows):
                if row["answer"]:
                    yield number, {name: row[name] for name in columns if row.get(name)}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DmoleError(f"cannot read {table}: {error}", "write it as a UTF-8 table again") from error


def _row(record: Record, *, details: Sequence[str], options: Mapping[str, Any]) -> Row:
    answers = record.answers("answer")
    kind = "yes_no" if answers[0].lower() in ("yes", "no") else "other"
    return Row(
        record.place,
        question=record.text("text"),
        answer=answers[0],
        references=tuple(answers),
        images=record.images(),
        details=identity(record) | {name: _detail(record, name) for name in details if name in record.value},
        named=record.named_texts() | {"instruction": options[kind]},
    )


def _detail(record: Record, name: str) -> Any:
    """A field for the metric; VLMEvalKit's tables have the options as a Python list in a text."""
    value = record.value[name]
    if name != "choices" or not isinstance(value, str):
        return value
    try:
        choices = literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        choices = None
    if choices is None and value == "None":
        return []
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        record.invalid(f"'{name}' must be a list of texts, not {value!r}")
    return choices
