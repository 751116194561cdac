"""Test records of CoIN: `text` contains the instruction; some tasks have boxes, ScienceQA's options or annotators' answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmole_cli.data.formats._annotations import answers_by_question, problem_of
from dmole_cli.data.formats._arrow import Row
from dmole_cli.data.formats._boxes import framed
from dmole_cli.data.formats._fields import MissingAnnotations, Record, identity, most_frequent
from dmole_cli.data.formats._json import entries, records
from dmole_cli.data.formats._lookup import Lookup, indexed
from dmole_cli.data.formats._recognition import QUESTION, first_of
from dmole_cli.data.formats._rows import FILE_OPTIONS, load_rows
from dmole_cli.data.formats.base import Guess, Source
from dmole_cli.data.invalid_records import valid_records
from dmole_cli.data.sample import Sample

if TYPE_CHECKING:
    from dmole_cli.data.card import TaskCard

HINT = 'a record is {"question_id": 7, "image": "...", "text": "What colour?", "answer": "red"}'

# `annotations`: a file with the answers of ten annotators, or with COCO captions, which become the references; `problems`:
# ScienceQA's problems.json, which lists the options and the correct one.
OPTIONS: Mapping[str, Any] = {**FILE_OPTIONS, "annotations": "", "problems": ""}
FILLS_PROMPT = True


def recognise(source: Source) -> Guess | None:
    """Records with `text` and `answer_bbox`, or with `question_id`, `text` and `answer`."""
    if {"text", "answer_bbox"} <= source.fields:
        return Guess(8, "its records have 'text' and 'answer_bbox'", prompt="{question}", metric="grounding")
    if {"question_id", "answer"} <= source.fields and first_of(QUESTION, source.fields) == "text":
        return Guess(4, "its records have 'question_id', 'text' and 'answer'", prompt="{question}")
    return None


def load(card: TaskCard, split: str, *, data_root: Path | None) -> Sequence[Sample]:
    """Read a split's records (a JSON array or JSON lines).

    If `annotations` provides the references, the record's own answer is kept in the details as `coin_answer`, for the
    metric that CoIN publishes (`coin_exact`). Grounding records have `answer_bbox`, in fractions of the image padded to a
    square, and `size`, the image's width and height.

    Raises:
        DmoleError: a file is missing or unreadable, a record is invalid, or its id is missing in the other file.
    """
    return load_rows(card, split, data_root=data_root, read=_read, other_files=("annotations", "problems"))


def _read(path: Path, other_files: Mapping[str, Path]) -> Iterator[Row]:
    with ExitStack() as opened:
        answers = problems = None
        if "annotations" in other_files:
            answers = opened.enter_context(indexed(answers_by_question(other_files["annotations"])))
        if "problems" in other_files:
            problems = opened.enter_context(indexed(entries(other_files["problems"])))
        missing = [
            MissingAnnotations(file, {"annotations": "answers"}.get(name, "problem"))
            for name, file in other_files.items()
        ]

        def row(place: str, value: Any) -> Iterator[Row]:
            record = Record(path, place, value, hint=HINT)
            found = [_found(record, lookup) for lookup in (answers, problems) if lookup is not None]
            for unknown, hit in zip(missing, found, strict=True):
                if hit is None:
                    unknown.add(record.value["question_id"])
            if None not in found:
                given = found[0] if answers is not None else None
                yield _row(record, given, (other_files["problems"], found[-1]) if problems is not None else None)

        yield from valid_records(records(path), row)
        for unknown in missing:
            unknown.raise_if_any()


def _found(record: Record, lookup: Lookup) -> Any:
    """The other file's entry for a record: by its id, or by its image's name (the only id of VizWiz)."""
    names = [record.text("question_id"), *(Path(name).name for name in record.images())]
    return next((hits[0] for hits in map(lookup.all, names) if hits), None)


def _row(record: Record, given: list[str] | None, problem: tuple[Path, Any] | None) -> Row:
    details = identity(record)
    if "answer_bbox" in record.value:
        width, height = record.numbers("size", 2)
        details |= framed(record.numbers("answer_bbox", 4), unit="padded", width=width, height=height)
        answer = record.text("answer") if "answer" in record.value else str(record.value["answer_bbox"])
    elif problem is not None:
        source, choices, answer = problem_of(problem[0], str(record.value["question_id"]), problem[1])
        details |= {"options": choices, "answer": source.value["answer"]}
    elif given is not None:
        answer = most_frequent(given)
        if "answer" in record.value:
            details["coin_answer"] = record.text("answer")
    else:
        answer = record.text("answer")
    return Row(
        record.place,
        question=record.text("text"),
        answer=answer,
        references=tuple(given or [answer]),
        images=record.images(),
        details=details,
        named=record.named_texts(),
    )
