"""`removed/<task>/`: the files of a task that was taken out of the stream, in the layout of a run directory, and where it was."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from dmole_cli.artifacts.allocation import read_json_object
from dmole_cli.artifacts.files import unwritable, write_json
from dmole_cli.artifacts.listing import list_folder
from dmole_cli.artifacts.provenance import validated
from dmole_cli.artifacts.run import Run
from dmole_cli.errors import DmoleError

FILE = "removed.json"


class _Document(BaseModel):
    task: str
    card: str
    stream: list[str]


@dataclass(frozen=True)
class Removed:
    """A task that was taken out of the stream.

    Attributes:
        task: its name.
        card: its entry in `tasks` of `run.toml`: the name, or the path of the card from the run directory.
        stream: names of the tasks before it was removed.
    """

    task: str
    card: str
    stream: tuple[str, ...]

    def position_in(self, tasks: tuple[str, ...]) -> int:
        """Index in another stream: after the nearest earlier task that it has."""
        earlier = self.stream[: self.stream.index(self.task)]
        return next((tasks.index(name) + 1 for name in reversed(earlier) if name in tasks), 0)


def write_removed(run: Run, removed: Removed) -> None:
    """Write what brings the task back."""
    document = {"task": removed.task, "card": removed.card, "stream": list(removed.stream)}
    write_json(run.removed(removed.task).root / FILE, document)


def read_removed(run: Run, task: str) -> Removed:
    """Read what brings a task back.

    Raises:
        DmoleError: the task was not removed from this run, or the file is damaged.
    """
    path = run.removed(task).root / FILE
    known = removed_tasks(run)
    if task not in known:
        raise DmoleError(
            f"no task {task} was removed from {run.root}", f"removed tasks of this run: {', '.join(known) or 'none'}"
        )
    found = validated(_Document, read_json_object(path), path=path)
    if found.task != task or task not in found.stream:
        raise DmoleError(f"{path} is not of task {task}", "restore the file from a backup")
    return Removed(task, found.card, tuple(found.stream))


def removed_tasks(run: Run) -> list[str]:
    """Names of the tasks whose files lie in `removed/`."""
    return [folder.name for folder in list_folder(run.root / "removed") if (folder / FILE).is_file()]


def move(files: Iterable[Path], source: Path, target: Path) -> int:
    """Move files from below one folder to the same paths below another one, and delete folders that become empty.

    Raises:
        DmoleError: moving a file failed; those before it have been moved.
    """
    count = 0
    for path in files:
        place = target / path.relative_to(source)
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(path, place)
        except OSError as error:
            raise unwritable(place, error) from error
        count += 1
        with suppress(OSError):  # not empty
            for folder in path.parents:
                if folder == source:
                    break
                folder.rmdir()
    return count
