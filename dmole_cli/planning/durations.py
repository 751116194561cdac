"""Seconds of the stages, from their parts; what several processes share, and what each of them does alone."""

from __future__ import annotations

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
    """What every process of a stage does before it computes.

    Attributes:
        seconds: from the start of the process until all libraries are imported.
        cpu_seconds: of its processor time.
        loading: seconds that loading the backbone takes; None where it was not measured.
        loading_cpu: of its processor time.
    """

    seconds: float
    cpu_seconds: float
    loading: float | None = None
    loading_cpu: float | None = None

    def of(self, stage: str) -> tuple[float, float]:
        """Seconds before a stage computes: by the wall clock, and of processor time."""
        if stage in WITHOUT_BACKBONE:
            return self.seconds, self.cpu_seconds
        return self.seconds + (self.loading or 0.0), self.cpu_seconds + (self.loading_cpu or 0.0)


def time_of(parts: Sequence[Part], start: Start, *, processes: int, source: str) -> dict[str, Any]:
    """Seconds per stage and in all, as JSON values, if a command runs each stage for all tasks.

    Args:
        parts: of all stages and tasks.
        start: of a process.
        processes: that share the work of a command.
        source: where the figures come from.
    """
    rows = []
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
