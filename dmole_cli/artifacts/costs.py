"""Seconds and counts of what a stage computed: `costs/<stage>/<task>.json`, outside of the artifacts."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dmole_cli.artifacts.files import write_json
from dmole_cli.errors import DmoleError
from dmole_cli.processes import world
from dmole_cli.settings.documents import read_json


class Cost:
    """Work that was done before the body of `measured`, such as the steps of an interrupted training.

    Attributes:
        seconds: time that it took.
    """

    seconds = 0.0

    def add(self, *, seconds: float) -> None:
        """Add the time of earlier work."""
        self.seconds += seconds


@contextmanager
def measured(path: Path, counts: Callable[[], Counter[str]], *, adding: bool = False) -> Iterator[Cost]:
    """Measure the body, and write its cost when it ends without an error.

    The artifact is written after the body, so that a stage that is killed between the two loses nothing: without the artifact it
    runs again. Loading the backbone and libraries is not counted: a process does it once for any number of tasks.

    Several processes measure the same body: the seconds are those of the first one, and the counts are those of all.

    Args:
        path: file to write, `{"seconds": ..., "counts": {what was computed: how often}}`.
        counts: returns what the backbone has computed so far (see `Backbone.counts`).
        adding: add to the existing cost, for work that is done in several runs; otherwise replace it.
    """
    import pyarrow.parquet  # noqa: F401

    started, before, cost = time.perf_counter(), Counter(counts()), Cost()
    yield cost
    seconds, own = time.perf_counter() - started + cost.seconds, counts() - before
    computed = sum(world().collect(own), Counter[str]())
    if adding and world().first and path.exists():
        earlier = read_cost(path)
        seconds, computed = seconds + earlier["seconds"], computed + Counter(earlier["counts"])
    write_json(path, {"seconds": round(seconds, 3), "counts": dict(sorted(computed.items()))})


def read_cost(path: Path) -> dict[str, Any]:
    """Read what `measured` wrote.

    Raises:
        DmoleError: the file does not hold a cost.
    """
    try:
        cost = read_json(path)
        return {"seconds": float(cost["seconds"]), "counts": {k: int(v) for k, v in cost.get("counts", {}).items()}}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        message = f"{path} does not hold the cost of a stage: {error!r}"
        raise DmoleError(message, "delete it; only the report of costs reads it") from error
