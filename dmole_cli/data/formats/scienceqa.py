"""ScienceQA as its authors publish it: problems.json, pid_splits.json, and a folder of pictures for each problem."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmole_cli.data.formats._annotations import problem_of
from dmole_cli.data.formats._fields import Unannotated, lettered, usable
from dmole_cli.data.formats._json import entries, members
from dmole_cli.data.formats._lookup import looked_up
from dmole_cli.data.formats._rows import FILE_OPTIONS, Row, load_rows
from dmole_cli.data.sample import Sample

if TYPE_CHECKING:
    from dmole_cli.data.card import TaskCard

# `train`, `validation` and `test` are names of splits here, not of files. Where there is no `pid_splits`, a problem's own
# `split` says where it belongs.
OPTIONS: Mapping[str, Any] = {
    **FILE_OPTIONS,
    "problems": "problems.json",
    "pid_splits": "",
    "train": "train",
    "validation": "val",
    "test": "test",
}
FILLS_PROMPT = True


def load(card: TaskCard, split: str, *, data_root: Path | None) -> Sequence[Sample]:
    """Read one split of the problems; the picture of problem 7 in `train` is `train/7/image.png` below `images`.

    The prompt may name `{options}`, and `{context}`, the problem's hint with a line's end, where it has one.

    Raises:
        DmoleError: a file is missing or unreadable, a problem is not usable, or the split lists an unknown one.
    """
    names = {part: card.data[part] for part in ("train", "validation", "test")}
    if not names[split]:
        return []
    files = {part: card.data["problems"] if name else "" for part, name in names.items()}
    data = {**card.data, **files, "names": names}
    read = partial(_read, split=names[split])
    return load_rows(card.updated(data=data), split, data_root=data_root, read=read, beside=("pid_splits",))


def _read(path: Path, beside: Mapping[str, Path], *, split: str) -> Iterator[Row]:
    if "pid_splits" not in beside:
        chosen = ((key, p) for key, p in entries(path) if isinstance(p, dict) and p.get("split") == split)
        yield from usable(chosen, lambda key, problem: [_row(path, key, problem, split)])
        return
    missing = Unannotated(path, "problem")
    with looked_up(entries(path)) as problems:

        def listed() -> Iterator[tuple[str, Any]]:
            for member in members(beside["pid_splits"]):
                if member.group == split:
                    found = problems.all(member.value)
                    if found:
                        yield str(member.value), found[0]
                    else:
                        missing.add(member.value)

        yield from usable(listed(), lambda key, problem: [_row(path, key, problem, split)])
    missing.refuse()


def _row(path: Path, key: str, problem: Any, split: str) -> Row:
    record, choices, letter = problem_of(path, key, problem)
    hint = record.value.get("hint") or ""
    return Row(
        f"problem {key}",
        question=record.text("question"),
        answer=letter,
        references=(letter,),
        images=tuple(f"{split}/{key}/{name}" for name in record.images()),
        details={"options": choices, "answer": record.value["answer"], "id": key},
        named=record.named() | {"options": lettered(choices), "context": f"{hint}\n" if hint else ""},
    )
