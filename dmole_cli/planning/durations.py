"""Seconds of the stages, from their parts; what several processes share, and what each of them does alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

STAGES = ("profile", "allocate", "train-router", "train-task", "evaluate")
WITHOUT_BACKBONE = ("allocate",)  # stages that load no weights


@dataclass(frozen=True)
class Part:
    """A part of the work of a stage for one task.

    Attributes:
        stage: name of the stage.
        task: name of the task.
        what: what is computed.
        seconds: by one process.
        cpu_seconds: of this process's processor, without worker processes; None where they are unknown.
        shares: number of pieces, of about equal size, that are dealt out to processes; 1 for work of one process.
    """

    stage: str
    task: str
    what: str
    seconds: float
    cpu_seconds: float | None = None
    shares: int = 1

    def by(self, processes: int) -> float:
        """Seconds until several processes have finished it: as long as the one with the most pieces takes."""
        shares = max(1, self.shares)
        return self.seconds * -(-shares // processes) / shares


@dataclass(frozen=True)
class Start:
    """What every process does before it reads data; pairs of seconds by the wall clock and of processor time.

    Attributes:
        light: until a stage without a backbone begins.
        libraries: until a stage with one has imported its libraries.
        loading: of the backbone; None where it was not measured.
    """

    light: tuple[float, float]
    libraries: tuple[float, float]
    loading: tuple[float, float] | None = None

    def of(self, stage: str) -> tuple[float, float]:
        """Both seconds before a stage reads data."""
        if stage in WITHOUT_BACKBONE:
            return self.light
        loading = self.loading or (0.0, 0.0)
        return self.libraries[0] + loading[0], self.libraries[1] + loading[1]


def seconds_of_process() -> tuple[float, float]:
    """Seconds since this process started: by the wall clock, and of its processor time."""
    import psutil

    return time.time() - psutil.Process().create_time(), time.process_time()


def time_of(parts: Sequence[Part], start: Start, *, processes: int, source: str) -> dict[str, Any]:
    """Seconds per stage and in all, as JSON values, if a command runs each stage for all tasks.

    Args:
        parts: of all stages and tasks.
        start: of a process.
        processes: that share the work of a command.
        source: where the figures come from.
    """
    rows: list[dict[str, Any]] = []
    for stage in STAGES:
        own = [part for part in parts if part.stage == stage]
        tasks: dict[str, float] = {}
        for part in own:
            tasks[part.task] = tasks.get(part.task, 0.0) + part.by(processes)
        computing, (before, cpu) = sum(tasks.values()), start.of(stage)
        known = [part.cpu_seconds for part in own if part.cpu_seconds is not None]
        rows.append(
            {
                "stage": stage,
                "start": round(before, 3),
                "computing": round(computing, 3),
                "seconds": round(before + computing, 3),
                "cpu_seconds": round(cpu + sum(known), 3) if len(known) == len(own) else None,
                "tasks": {task: round(seconds, 3) for task, seconds in tasks.items()},
            }
        )
    return {
        "source": source,
        "processes": processes,
        "start": asdict(start),
        "stages": rows,
        "seconds": round(sum(row["seconds"] for row in rows), 3),
        "parts": [asdict(part) for part in parts],
    }
