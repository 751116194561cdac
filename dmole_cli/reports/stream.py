"""Which evaluations belong to the configured stream: those of a model that had learned its tasks, in its order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from dmole_cli.methods.base import Entry, Method
from dmole_cli.reports.evaluations import method_of


class Recorded(Protocol):
    """A file that says which tasks had been learned."""

    @property
    def learned(self) -> tuple[str, ...]:
        """The tasks, in the order in which they were learned."""

    @property
    def path(self) -> Path:
        """The file."""


File = TypeVar("File", bound=Recorded)


@dataclass(frozen=True)
class LeftOut:
    """An evaluation or a file of likelihoods of another stream, which the report does not use.

    Attributes:
        method: its folder.
        stage: number of tasks after which it was made.
        task: whose samples were evaluated.
        learned: the tasks that had been learned, in order.
        path: the file.
    """

    method: str
    stage: int
    task: str
    learned: tuple[str, ...]
    path: Path


def of_stream(
    label: str, found: Mapping[Entry, File], tasks: Sequence[str]
) -> tuple[dict[Entry, File], tuple[LeftOut, ...]]:
    """Divide a method's files into those of the configured stream, by entry, and the others.

    Args:
        label: the folder of the files, which names the method.
        found: (stage, task) -> file.
        tasks: the stream, in order.
    """
    method, used, others = method_of(label), {}, []
    # The entry of a per-task method depends on its task alone, so it is valid at whatever position the task has now; a file
    # that was made at this position comes last, and stays.
    in_order = sorted(found.items(), key=lambda item: _position(tasks, item[0][1]) == item[0][0])
    for (stage, task), file in in_order:
        if method.protocol == "per-task" and file.learned == (task,) and task in tasks:
            used[_position(tasks, task), task] = file
        elif _belongs(method, file.learned, tasks, stage, task):
            used[stage, task] = file
        else:
            others.append(LeftOut(label, stage, task, file.learned, file.path))
    return dict(sorted(used.items())), tuple(sorted(others, key=lambda one: (one.stage, one.task)))


def _position(tasks: Sequence[str], task: str) -> int:
    """The number of tasks after which a task of the stream has been learned; -1 for another one."""
    return list(tasks).index(task) + 1 if task in tasks else -1


def _belongs(method: Method, learned: Sequence[str], tasks: Sequence[str], stage: int, task: str) -> bool:
    if stage > len(tasks):
        return False
    expected = method.learned(tasks, stage, task)
    # Joint training shuffles the union of all tasks, so their order means nothing.
    return sorted(learned) == sorted(expected) if method.protocol == "joint" else list(learned) == expected


def explanation(left_out: Sequence[LeftOut], tasks: Sequence[str]) -> str:
    """Why evaluations are shown as missing, in one sentence for all of them; empty without any."""
    if not left_out:
        return ""
    methods = ", ".join(dict.fromkeys(one.method for one in left_out))
    example = left_out[0]
    after = ", ".join(example.learned) or "no task"
    return (
        f"note: {len(left_out)} evaluation file(s) of {methods} are of another stream and count as missing: the configured "
        f"stream is {', '.join(tasks)}, but {example.path}, for example, was made after learning {after}. Restore `tasks` "
        "in the configuration to report that stream, or run the configured one in another --run."
    )
