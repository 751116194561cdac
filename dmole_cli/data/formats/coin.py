"""Test records of CoIN: the instruction is part of `text`; boxes, ScienceQA's options and ten answers where a task has them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmole_cli.data.formats._annotations import answers_by_question, problem_of
from dmole_cli.data.formats._boxes import framed
from dmole_cli.data.formats._fields import Record, Unannotated, identity, most_given, usable
from dmole_cli.data.formats._json import entries, records
from dmole_cli.data.formats._lookup import Lookup, looked_up
from dmole_cli.data.formats._rows import FILE_OPTIONS, Row, load_rows
from dmole_cli.data.sample import Sample

if TYPE_CHECKING:
    from dmole_cli.data.card import TaskCard

IMAGE_MARKER = "<image>"
HINT = 'a record is {"question_id": 7, "image": "...", "text": "What colour?", "answer": "red"}'

# `annotations`: a file with the answers of ten people, which are the references then; `problems`: ScienceQA's problems.json,
# which says what the options are and which is right.
OPTIONS: Mapping[str, Any] = {**FILE_OPTIONS, "annotations": "", "problems": ""}
FILLS_PROMPT = True


def load(card: TaskCard, split: str, *, data_root: Path | None) -> Sequence[Sample]:
    """Read one split's records (a JSON array or JSON lines).

    Where other people's answers are the references, the record's own one stays in the details as `coin_answer`, for the
    metric by which CoIN published (`coin_exact`). Grounding records have `answer_bbox`, fractions of the image padded to
    a square, and `size`, its width and height.

    Raises:
        DmoleError: a file is missing or unreadable, a record is not usable, or its id is unknown to the other file.
    """
    return load_rows(card, split, data_root=data_root, read=_read, beside=("annotations", "problems"))


def _read(path: Path, beside: Mapping[str, Path]) -> Iterator[Row]:
    with ExitStack() as opened:
        answers = problems = None
        if "annotations" in beside:
            answers = opened.enter_context(looked_up(answers_by_question(beside["annotations"])))
        if "problems" in beside:
            problems = opened.enter_context(looked_up(entries(beside["problems"])))
        missing = [Unannotated(file, {"annotations": "answers"}.get(name, "problem")) for name, file in beside.items()]

        def row(place: str, value: Any) -> Iterator[Row]:
            record = Record(path, place, value, hint=HINT)
            found = [_found(record, lookup) for lookup in (answers, problems) if lookup is not None]
            for unknown, hit in zip(missing, found, strict=True):
                if hit is None:
                    unknown.add(record.value["question_id"])
            if None not in found:
                given = found[0] if answers is not None else None
                yield _row(record, given, (beside["problems"], found[-1]) if problems is not None else None)

        yield from usable(records(path), row)
        for unknown in missing:
            unknown.refuse()


def _found(record: Record, lookup: Lookup) -> Any:
    """What another file says of a record: by its id, or by its picture's name, which is all the id that VizWiz has."""
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
        answer = most_given(given)
        # The one answer that CoIN itself compares with (its rule is the metric coin_exact).
        if "answer" in record.value:
            details["coin_answer"] = record.text("answer")
    else:
        answer = record.text("answer")
    return Row(
        record.place,
        question=record.text("text").replace(IMAGE_MARKER, "").strip(),
        answer=answer,
        references=tuple(given or [answer]),
        images=record.images(),
        details=details,
        named=record.named(),
    )
