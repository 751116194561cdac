"""ScienceQA as its authors publish it: problems.json, pid_splits.json, and a folder of images per problem."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmole_cli.data.formats._annotations import PROBLEM_HINT, problem_of
from dmole_cli.data.formats._arrow import Row
from dmole_cli.data.formats._fields import MissingAnnotations, Record, lettered
from dmole_cli.data.formats._json import entries, members
from dmole_cli.data.formats._lookup import indexed
from dmole_cli.data.formats._recognition import LETTER_PROMPT
from dmole_cli.data.formats._rows import FILE_OPTIONS, load_rows
from dmole_cli.data.formats.base import Guess, Source
from dmole_cli.data.invalid_records import valid_records
from dmole_cli.data.sample import Sample

if TYPE_CHECKING:
    from dmole_cli.data.card import TaskCard

# `train`, `validation` and `test` are names of splits here, not of files. Without `pid_splits`, the field `split` of a
# problem decides.
OPTIONS: Mapping[str, Any] = {
    **FILE_OPTIONS,
    "problems": "problems.json",
    "pid_splits": "",
    "train": "train",
    "validation": "val",
    "test": "test",
}
FILLS_PROMPT = True
# The splits that ScienceQA publishes; a card need not use all of them.
PUBLISHED = frozenset(("train", "val", "test", "trainval", "minitrain", "minival", "minitest"))


def recognise(source: Source) -> Guess | None:
    """One object of problems with `question`, `choices`, `answer`, and a `split` that is `train`, `val` or `test`."""
    if not source.is_document:
        return None
    fields = {member.key for member in islice(members(source.path), 10_000)}
    if not {"question", "choices", "answer", "split"} <= fields:
        return None
    found = {str(member.value) for member in members(source.path) if member.key == "split"}
    splits = {split: OPTIONS[split] for split in ("train", "validation", "test")}
    if not found.issuperset(splits.values()):
        return None
    return Guess(
        8,
        "its problems have 'question', 'choices', 'answer' and 'split'",
        {"problems": "", **splits},
        prompt=f"{{context}}{LETTER_PROMPT}",
        metric="scienceqa",
        source_option="problems",
    )


def load(card: TaskCard, split: str, *, data_root: Path | None) -> Sequence[Sample]:
    """Read one split of the problems; the image of problem 7 in `train` is `train/7/image.png` below `images`.

    The prompt may name `{options}`, and `{context}`: the problem's hint and a line break, empty without a hint.

    Raises:
        DmoleError: a file is missing or unreadable, a problem is invalid, or the split lists an unknown one.
    """
    names = {part: card.data[part] for part in ("train", "validation", "test")}
    if not names[split]:
        return []
    files = {part: card.data["problems"] if name else "" for part, name in names.items()}
    data = {**card.data, **files, "names": names}
    read = partial(_read, split=names[split], names=PUBLISHED | set(filter(None, names.values())))
    return load_rows(card.updated(data=data), split, data_root=data_root, read=read, other_files=("pid_splits",))


def _read(path: Path, other_files: Mapping[str, Path], *, split: str, names: Collection[str]) -> Iterator[Row]:
    def rows(key: str, problem: Any) -> Iterator[Row]:
        yield _row(path, key, problem, split)

    if "pid_splits" not in other_files:
        # A problem whose split is unknown could belong to any split, so each of them reports it.
        yield from valid_records(
            entries(path), lambda key, p: rows(key, p) if _split(path, key, p, names) == split else ()
        )
        return
    missing = MissingAnnotations(path, "problem")
    with indexed(entries(path)) as problems:

        def listed() -> Iterator[tuple[str, Any]]:
            for member in members(other_files["pid_splits"]):
                if member.group == split:
                    found = problems.all(member.value)
                    if found:
                        yield str(member.value), found[0]
                    else:
                        missing.add(member.value)

        yield from valid_records(listed(), rows)
    missing.raise_if_any()


def _split(path: Path, key: str, problem: Any, names: Collection[str]) -> str:
    """The split that a problem says it belongs to."""
    record = Record(path, f"problem {key}", problem, hint=PROBLEM_HINT)
    split = record.value.get("split")
    if not isinstance(split, str) or split not in names:
        record.invalid(f"its split is {split!r}, which is none of {', '.join(sorted(names))}")
    return split


def _row(path: Path, key: str, problem: Any, split: str) -> Row:
    record, choices, letter = problem_of(path, key, problem)
    hint = record.value.get("hint")
    if not isinstance(hint, str | None):
        record.invalid(f"'hint' must be a text, not {hint!r}")
    return Row(
        f"problem {key}",
        question=record.text("question"),
        answer=letter,
        references=(letter,),
        images=tuple(f"{split}/{key}/{name}" for name in record.images()),
        details={"options": choices, "answer": record.value["answer"], "id": key},
        named=record.named_texts() | {"options": lettered(choices), "context": f"{hint}\n" if hint else ""},
    )
