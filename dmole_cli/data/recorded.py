"""The settings that `run.toml` records, with tasks by name; for commands that change the stream of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from dmole_cli.artifacts.files import write_text
from dmole_cli.data.card import task_name
from dmole_cli.errors import DmoleError
from dmole_cli.settings.model import Settings
from dmole_cli.settings.reading import read_record
from dmole_cli.settings.record import FILE, located, record_of


@dataclass(frozen=True)
class Recorded:
    """A record of a run directory.

    Attributes:
        root: the run directory.
        settings: with names in `tasks` and `unseen`.
        paths: task -> the path of its card from the current folder, for tasks that are named by a path.
    """

    root: Path
    settings: Settings
    paths: Mapping[str, str]

    @classmethod
    def read(cls, root: Path, model: type[Settings] = Settings) -> Self:
        """Read `run.toml`.

        Raises:
            DmoleError: it does not exist, or is not as dmole writes it.
        """
        path = root / FILE
        if not path.is_file():
            raise DmoleError(f"{path} does not exist: nothing says which tasks the run has", "check the path of --run")
        return cls.of(root, model.model_validate(located(read_record(path, model), root)))

    @classmethod
    def of(cls, root: Path, settings: Settings) -> Self:
        """The record of settings whose tasks are names, or paths of cards from the current folder."""
        entries = (*settings.tasks, *settings.unseen)
        names = {"tasks": tuple(map(task_name, settings.tasks)), "unseen": tuple(map(task_name, settings.unseen))}
        return cls(root, settings.updated(**names), {task_name(e): e for e in entries if e.endswith(".toml")})

    def with_stream(
        self, tasks: Sequence[str], removed: Sequence[str], *, paths: Mapping[str, str] | None = None
    ) -> Self:
        """The same record with another stream.

        Args:
            tasks: names, in order.
            removed: names of tasks that were taken out.
            paths: of the cards of further tasks, as in `paths`.
        """
        settings = self.settings.updated(tasks=tuple(tasks), removed=tuple(removed))
        return replace(self, settings=settings, paths={**self.paths, **(paths or {})})

    @property
    def text(self) -> str:
        """The text of `run.toml`."""
        return record_of(self.settings, self.paths, root=self.root)

    def write(self) -> None:
        """Write `run.toml`."""
        write_text(self.root / FILE, self.text)
