"""A finished run with its configuration and tasks, as single changes find it, and its state before a change."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random

from dmole_cli.artifacts.headers import header_of
from dmole_cli.artifacts.kinds import Kind
from dmole_cli.artifacts.run import Run


@dataclass(frozen=True)
class Place:
    """A folder with a configuration, tasks and a finished run.

    Attributes:
        folder: it holds `dmole.toml`, task cards, their data and the run directory.
        run: the run directory.
        choose: random choices.
    """

    folder: Path
    run: Run
    choose: Random

    def artifacts(self, *kinds: Kind) -> list[tuple[Path, Kind, dict[str, str]]]:
        """The artifacts of some kinds, or of all, with the values of their paths."""
        found = []
        for path in sorted(path for path in self.run.root.rglob("*") if path.is_file()):
            identified = self.run.identify(path)
            if identified is not None and (not kinds or identified[0] in kinds):
                found.append((path, *identified))
        return found

    def pick(self, *kinds: Kind) -> tuple[Path, Kind, dict[str, str]]:
        """One of them; every kind is equally likely."""
        found = self.artifacts(*kinds)
        kind = self.choose.choice(sorted({kind.name for _, kind, _ in found}))
        return self.choose.choice([one for one in found if one[1].name == kind])

    def data(self, *endings: str) -> list[Path]:
        """Files of the tasks' data, but for splits that nothing was made from."""
        outside = (path for path in sorted(self.folder.rglob("*")) if not path.is_relative_to(self.run.root))
        made_from = [data for path, kind, _ in self.artifacts() if (h := header_of(path, kind)) for data in h.inputs]
        splits = {tuple(name.removeprefix("data:").split("/")) for name in made_from if name.startswith("data:")}
        return [
            path
            for path in outside
            if path.suffix in endings
            and any(task in path.parts[-3:] and path.name.startswith(split) for task, split in splits)
        ]


# Makes a change, and says what it was.
Change = Callable[[Place], str]


def snapshot(folder: Path) -> dict[Path, bytes]:
    """The content of every file below a folder."""
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def restore(folder: Path, before: Mapping[Path, bytes]) -> Iterator[Path]:
    """Undo all changes since a snapshot; yields the files that had changed."""
    now = snapshot(folder)
    for path in now.keys() - before.keys():
        path.unlink()
        yield path
    for path, content in before.items():
        if now.get(path) != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            yield path
