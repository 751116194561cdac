"""What a stage hands back to whoever called it: what it read, what it wrote, and whether it had to do anything."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from dmole_cli.artifacts.files import write_json

Item = TypeVar("Item")
Track = Callable[[Iterable[Any], str, int], Iterable[Any]]


def untracked(items: Iterable[Item], description: str, total: int) -> Iterable[Item]:
    """Iterate without showing progress."""
    return items


@dataclass(frozen=True)
class Outcome:
    """Result of one stage for one task.

    Attributes:
        stage: name of the subcommand.
        task: name of the task.
        path: the artifact.
        written: False where it was there already, made from the same inputs and settings.
        reads: files and data that went in.
        facts: a few numbers worth saying, JSON values.
    """

    stage: str
    task: str
    path: Path
    written: bool
    reads: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """JSON values, for `--json`."""
        return {
            "stage": self.stage,
            "task": self.task,
            "path": str(self.path),
            "written": self.written,
            "reads": list(self.reads),
            **self.facts,
        }


@contextmanager
def clocked(path: Path) -> Iterator[None]:
    """Write the seconds that the body took to a cost file: beside the artifacts, because time does not reproduce."""
    started = time.perf_counter()
    yield
    write_json(path, {"seconds": round(time.perf_counter() - started, 3)})
