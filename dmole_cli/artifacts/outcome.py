"""What a stage returns: what it read, what it wrote, and whether it ran."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self


@dataclass(frozen=True)
class Outcome:
    """Result of one stage for one task.

    Attributes:
        stage: name of the stage.
        task: name of the task.
        path: the artifact.
        written: False where it was up to date.
        reads: files and data that it was made from.
        facts: a few figures to report, JSON values.
        warnings: what the user should know about the result, a sentence each.
    """

    stage: str
    task: str
    path: Path
    written: bool = False
    reads: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def wrote(self, **facts: Any) -> Self:
        """The outcome after the artifact was written."""
        return replace(self, written=True, facts={**self.facts, **facts})

    def as_dict(self) -> dict[str, Any]:
        """JSON values, for `--json`."""
        return {
            "stage": self.stage,
            "task": self.task,
            "path": str(self.path),
            "written": self.written,
            "reads": list(self.reads),
            **self.facts,
            **({"warnings": list(self.warnings)} if self.warnings else {}),
        }
