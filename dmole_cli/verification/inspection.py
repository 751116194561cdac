"""A run directory under inspection: its artifacts, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from dmole_cli import catalog
from dmole_cli.artifacts.errors import ArtifactError
from dmole_cli.artifacts.headers import header_of
from dmole_cli.artifacts.kinds import Kind
from dmole_cli.artifacts.labels import base_method
from dmole_cli.artifacts.provenance import DATA_PREFIX, Header
from dmole_cli.artifacts.run import Run
from dmole_cli.data.tasks import Tasks
from dmole_cli.errors import DmoleError
from dmole_cli.methods.base import Method, load_method
from dmole_cli.settings.model import Settings


@dataclass(frozen=True)
class Problem:
    """One broken link.

    Attributes:
        path: the file that is wrong or missing.
        error: what is wrong. The command that makes the file again follows from an `ArtifactError`; other errors have a hint.
        before: what to do before that command or instead of it, in words that end before the command.
    """

    path: Path
    error: DmoleError
    before: str = ""


@dataclass(frozen=True, eq=False)
class Found:
    """An artifact that lies in the run directory.

    Attributes:
        path: the file.
        kind: what it is, by its path.
        values: what its path states: task, method, stage, split, metric.
        header: its provenance; None where it cannot be read.
    """

    path: Path
    kind: Kind
    values: Mapping[str, str]
    header: Header | None

    @property
    def task(self) -> str:
        """The task."""
        return self.values["task"]

    @property
    def label(self) -> str:
        """The method with its routing; empty for artifacts of no method."""
        return self.values.get("method", "")

    @property
    def after(self) -> int:
        """Number of trained tasks."""
        return int(self.values["after"])

    @property
    def split(self) -> str:
        """The split."""
        return self.values.get("split", "train")


@dataclass
class Inspection:
    """What is known of a run directory.

    Attributes:
        run: the run directory.
        settings: of the run.
        data: the tasks, without caches.
        fingerprint: of the configured backbone.
        found: its artifacts by path.
        problems: broken links, in the order in which they were found.
    """

    run: Run
    settings: Settings
    data: Tasks
    fingerprint: str
    found: dict[Path, Found] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    _rules: dict[str, Method] = field(default_factory=dict)

    def report(self, path: Path, error: DmoleError, *, before: str = "") -> None:
        """Note a broken link; of the same file and message once."""
        if not any(known.path == path and known.error.message == error.message for known in self.problems):
            self.problems.append(Problem(path, error, before))

    def read(self, paths: Iterable[Path]) -> None:
        """Read the headers of artifacts, which are compared with the content; a damaged one is reported."""
        for path in paths:
            identified = self.run.identify(path)
            if identified is None or path in self.found:
                continue
            kind, values = identified
            header = None
            try:
                header = header_of(path, kind)
            except ArtifactError as error:
                self.report(path, error)
            self.found[path] = Found(path, kind, values, header)

    def is_broken(self, path: Path) -> bool:
        """Whether something is wrong with a file."""
        return any(problem.path == path for problem in self.problems)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks of the stream, then the unseen ones."""
        return (*self.settings.tasks, *self.settings.unseen)

    def rules(self, label: str) -> Method:
        """The method of a folder of artifacts.

        Raises:
            DmoleError: there is no such method.
        """
        name = base_method(label)
        if name not in self._rules:
            self._rules[name] = load_method(name)
        return self._rules[name]

    def is_known(self, found: Found) -> bool:
        """Whether an artifact's task and method exist, so that its content can be compared with what they make."""
        return found.task in self.tasks and (not found.label or base_method(found.label) in self.methods)

    @cached_property
    def methods(self) -> frozenset[str]:
        """The names of all methods."""
        return frozenset(catalog.names("methods"))

    def sources(self, path: Path) -> list[Path]:
        """The artifacts that one was made from, by its header; also those that are missing."""
        found = self.found.get(path)
        names = found.header.inputs if found is not None and found.header is not None else ()
        return [self.run.path_of(name) for name in sorted(names) if is_artifact(name)]


def is_artifact(name: str) -> bool:
    """Whether an input of a header is another artifact, and neither task data nor the file of an imported adapter."""
    return not name.startswith((DATA_PREFIX, "adapter:"))
