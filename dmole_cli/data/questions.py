"""Files of questions for `dmole answer`, and of their answers: JSON lines or parquet, a question per row."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmole_cli.artifacts.files import digest_of_file, replacing, write_text
from dmole_cli.errors import DmoleError, first_line
from dmole_cli.settings.documents import parse_json

SUFFIXES = (".jsonl", ".parquet")
# What an answer adds to a row.
ADDED = ("answer", "experts", "recognised", "losses", "thresholds")


@dataclass(frozen=True)
class Question:
    """One row.

    Attributes:
        name: file and number of the row, for error messages.
        text: the question.
        images: files; relative paths are relative to the folder of the file.
    """

    name: str
    text: str
    images: Sequence[Path]


@dataclass(frozen=True)
class Questions:
    """A file of questions.

    Attributes:
        records: the rows as they were read.
        rows: the questions.
        digest: sha256 of the file.
    """

    records: Sequence[Mapping[str, Any]]
    rows: Sequence[Question]
    digest: str


def read_questions(path: Path, out: Path) -> Questions:
    """Read and check all rows.

    Args:
        path: the file, .jsonl or .parquet; each row has `question`, and `image` (a path) or `images` (a list) or neither.
        out: where the answers will be written.

    Raises:
        DmoleError: a file has another ending, a row is invalid, or has a key that the answer adds.
    """
    for file in (path, out):
        if file.suffix not in SUFFIXES:
            raise DmoleError(f"{file}: expected a file that ends with {' or '.join(SUFFIXES)}", "rename or convert it")
    if path.resolve() == out.resolve():
        raise DmoleError(f"{out} is the file of the questions", "pass --out another file")
    try:
        records = list(_parquet(path) if path.suffix == ".parquet" else _json_lines(path))
        digest = digest_of_file(path)
    except OSError as error:
        raise DmoleError(f"cannot read {path}: {error.strerror or error}", "pass --file a readable file") from error
    if not records:
        raise DmoleError(f"{path} has no rows", "write a question per row")
    return Questions(records, [_question(record, path, row) for row, record in enumerate(records, start=1)], digest)


def _json_lines(path: Path) -> Iterable[Mapping[str, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = parse_json(line)
            except ValueError as error:
                raise DmoleError(
                    f"{path}, line {number}: {first_line(error)}", "write a JSON object per line"
                ) from error
            if not isinstance(record, dict):
                raise DmoleError(f"{path}, line {number}: expected a JSON object", "write a JSON object per line")
            yield record


def _parquet(path: Path) -> Iterable[Mapping[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path).to_pylist()
    except pa.ArrowException as error:
        raise DmoleError(f"{path} cannot be read as parquet: {first_line(error)}", "write it again") from error


def _question(record: Mapping[str, Any], path: Path, row: int) -> Question:
    name = f"{path}, row {row}"
    text, images = record.get("question"), record.get("images", record.get("image"))
    images = [images] if isinstance(images, str) else images or []
    if not isinstance(text, str):
        raise DmoleError(f"{name}: `question` is missing or no text", "give each row a `question`")
    if not isinstance(images, list) or not all(isinstance(image, str) and image for image in images):
        raise DmoleError(f"{name}: `image` must be a path, `images` a list of paths", "correct the row")
    if taken := [key for key in ADDED if key in record]:
        raise DmoleError(f"{name} has the key `{taken[0]}`, which an answer adds", "rename the key")
    return Question(name, text, [path.parent / image for image in images])


def write_answers(out: Path, questions: Questions, answers: Sequence[Mapping[str, Any]]) -> None:
    """Write the rows of the questions, each with the keys `ADDED`; in parquet, losses and thresholds are JSON texts.

    Raises:
        DmoleError: the file cannot be written.
    """
    rows = [{**record, **answer} for record, answer in zip(questions.records, answers, strict=True)]
    if out.suffix == ".jsonl":
        write_text(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = [{**row, **{key: json.dumps(row[key]) for key in ("losses", "thresholds")}} for row in rows]
    with replacing(out) as file:
        pq.write_table(pa.Table.from_pylist(texts), file)
