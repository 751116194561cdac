"""What a stage hands back to whoever called it: what it read, what it wrote, and whether it had to do anything."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dmole_cli.artifacts.files import write_json
from dmole_cli.errors import DmoleError


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
def clocked(path: Path, counts: Callable[[], Counter[str]], *, adding: bool = False) -> Iterator[None]:
    """Write what the body cost to a file beside the artifacts, and not inside, because time does not reproduce.

    Args:
        path: `{"seconds": ..., "counts": {what was computed: how often}}`.
        counts: what the backbone has computed so far (see `Backbone.counts`).
        adding: add to the costs that are there, for work that is done bit by bit; else they are replaced.
    """
    started, before = time.perf_counter(), Counter(counts())
    yield
    seconds, computed = time.perf_counter() - started, counts() - before
    if adding and path.exists():
        earlier = read_cost(path)
        seconds, computed = seconds + earlier["seconds"], computed + Counter(earlier["counts"])
    write_json(path, {"seconds": round(seconds, 3), "counts": dict(sorted(computed.items()))})


def read_cost(path: Path) -> dict[str, Any]:
    """Read what `clocked` wrote.

    Raises:
        DmoleError: the file is not what a stage writes.
    """
    try:
        cost = json.loads(path.read_text(encoding="utf-8"))
        return {"seconds": float(cost["seconds"]), "counts": {k: int(v) for k, v in cost.get("counts", {}).items()}}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        message = f"{path} does not hold a stage's seconds: {error!r}"
        raise DmoleError(message, "delete it; nothing but the report of costs reads it") from error
