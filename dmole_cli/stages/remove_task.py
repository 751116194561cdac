"""`dmole experts remove` and `load`: take a task out of the stream of a run, and bring it back without training."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmole_cli import catalog
from dmole_cli.artifacts.errors import ArtifactError, StaleArtifact
from dmole_cli.artifacts.headers import header_of
from dmole_cli.artifacts.kinds import EVALUATION, LIKELIHOOD, RESCORED
from dmole_cli.artifacts.labels import base_method
from dmole_cli.artifacts.removed import FILE, Removed, move, read_removed, removed_tasks, write_removed
from dmole_cli.artifacts.run import Run
from dmole_cli.data.recorded import Recorded
from dmole_cli.errors import DmoleError
from dmole_cli.methods._stream import require_stream
from dmole_cli.methods.base import Entry, Method, load_method
from dmole_cli.settings.model import Settings
from dmole_cli.settings.record import FILE as RECORD

# Entries of a score matrix: they belong to a stream, and not to a task alone.
ENTRIES = (EVALUATION, LIKELIHOOD, RESCORED)


@dataclass(frozen=True)
class Change:
    """What a removal or its reversal did.

    Attributes:
        task: the task.
        position: in the stream, from 1: before the removal, or after its reversal.
        files: number of files that were moved.
        tasks: the stream now.
        set_aside: number of evaluations of other streams that a reversal moved out of the way.
        stale: experts that do not fit the stream any more, in words.
    """

    task: str
    position: int
    files: int
    tasks: tuple[str, ...]
    set_aside: int = 0
    stale: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**vars(self), "tasks": list(self.tasks), "stale": list(self.stale)}


def remove_task(task: str, *, settings: Settings, run: Run) -> Change:
    """Take a task out of the stream: its files, and the evaluations of streams that have it, move to `removed/<task>/`.

    Profiles, features and routers in a folder that several runs share stay there. A removal that was interrupted is completed
    by the same command: the record of the run changes last.

    Args:
        task: of the recorded stream.
        settings: whose type the record has.
        run: the run directory.

    Raises:
        DmoleError: the task is not in the stream or is its only one, or a method has trained one expert through it and later
            tasks.
    """
    recorded = Recorded.read(run.root, type(settings))
    tasks = recorded.settings.tasks
    position = recorded.settings.position(task)
    if len(tasks) == 1:
        raise DmoleError(
            f"{task} is the only task of {run.root}", "delete the run directory, or train another task first"
        )
    _refuse_continued(task, recorded.settings, run)
    left = tuple(name for name in tasks if name != task)
    after = recorded.with_stream(left, (*recorded.settings.removed, task))
    card = os.path.relpath(recorded.paths[task], run.root) if task in recorded.paths else task
    write_removed(run, Removed(task, card, tasks))
    own = _own_files(run, task)
    others = sorted(set(_files(run)).difference(own))
    files = [*own, *_entries_out_of(after.settings, run, others, before=recorded.settings)]
    count = move(files, run.root, run.removed(task).root)
    after.write()
    return Change(task, position, count, left)


def load_task(task: str, *, settings: Settings, run: Run) -> Change:
    """Bring a removed task back to its position, without training.

    Evaluations that belong to another stream than the one that results move to `removed/<task>.other-streams/`.

    Args:
        task: that was removed.
        settings: whose type the record has.
        run: the run directory.

    Raises:
        DmoleError: no such task was removed.
    """
    recorded = Recorded.read(run.root, type(settings))
    if task in recorded.settings.removed and task not in removed_tasks(run):
        raise DmoleError(
            f"{run.removed(task).root} does not exist: nothing is left of {task}",
            f"to train it again, delete it from `removed` in {run.root / RECORD} and add it to `tasks` of the configuration",
        )
    removed = read_removed(run, task)
    now, folder = recorded.settings, run.removed(task).root
    others = tuple(name for name in now.tasks if name != task)
    index = removed.position_in(others)
    tasks = (*others[:index], task, *others[index:])
    path = {task: os.path.normpath(run.root / removed.card)} if removed.card.endswith(".toml") else {}
    after = recorded.with_stream(tasks, [name for name in now.removed if name != task], paths=path)
    files = [path for path in _below(folder) if path != folder / FILE]
    in_the_way = {run.root / path.relative_to(folder) for path in files}
    in_the_way = {path for path in in_the_way if path.exists()}
    in_the_way |= set(_entries_out_of(after.settings, run, _files(run), before=now))
    elsewhere = run.removed(f"{task}.other-streams").root
    aside = move(sorted(in_the_way), run.root, elsewhere)
    count = move(files, folder, run.root)
    # Where tasks do not come back in the order of their removal.
    back = [run.root / path.relative_to(folder) for path in files]
    aside += move(list(_entries_out_of(after.settings, run, back)), run.root, elsewhere)
    after.write()
    (folder / FILE).unlink()
    for empty in (folder, folder.parent):
        if not any(empty.iterdir()):
            empty.rmdir()
    return Change(task, index + 1, count, tasks, aside, tuple(_stale(after.settings, run)))


def _refuse_continued(task: str, settings: Settings, run: Run) -> None:
    """Refuse where a method has trained one expert through this task and others.

    Raises:
        DmoleError: as described.
    """
    later = settings.tasks[settings.position(task) :]
    for rules, trained in _trained(settings, run):
        after = [name for name in later if name in trained]
        remembers = rules.has_memory and not rules.weighted
        through = rules.protocol == "joint" or ((rules.continues or remembers) and after)
        if through and trained:
            first = f", or remove {after[-1]} first: dmole experts remove {after[-1]}" if after else ""
            raise DmoleError(
                f"method {rules.name} trains one expert through all tasks: that of {(after or trained)[-1]} has learned {task}",
                f"move {run.expert('*', rules.name)} and the method's other files to another folder{first}",
            )


def _trained(settings: Settings, run: Run) -> Iterator[tuple[Method, list[str]]]:
    """The methods that have experts in the run, with the tasks of these."""
    for name in catalog.names("methods"):
        trained = [task for task in settings.tasks if run.expert(task, name).is_file()]
        if trained:
            yield load_method(name), trained


def _own_files(run: Run, task: str) -> list[Path]:
    """The files of a task in the run directory itself."""

    def is_own(path: Path) -> bool:
        found = run.identify(path)
        cost = path.is_relative_to(run.root / "costs") and path.name == f"{task}.json"
        return path == run.imported(task) or cost or (found is not None and found[1]["task"] == task)

    return [path for path in _files(run) if is_own(path)]


def _entries_out_of(
    settings: Settings, run: Run, paths: Iterable[Path], *, before: Settings | None = None
) -> Iterator[Path]:
    """Evaluations that are none of this stream: another model made them, or another number of tasks.

    Args:
        settings: with the stream.
        run: the run directory.
        paths: files of the run directory.
        before: with the stream that they belong to; entries that are the same in both are not read.
    """
    known, entries = frozenset(catalog.names("methods")), dict[str, frozenset[Entry]]()
    for path in paths:
        found = run.identify(path)
        if found is None or found[0] not in ENTRIES or (method := base_method(found[1]["method"])) not in known:
            continue
        rules, after, task = load_method(method), int(found[1]["after"]), found[1]["task"]
        if method not in entries:
            entries[method] = frozenset(rules.entries(settings.tasks, settings.unseen))
        learned = rules.learned(settings.tasks, after, task)
        has = (after, task) in entries[method]
        if has and before is not None and learned == rules.learned(before.tasks, after, task):
            continue
        try:
            header = header_of(path, found[0])
        except ArtifactError:  # reported by whoever reads it
            continue
        if not has or header is None or header.settings.get("learned") != learned:
            yield path


def _files(run: Run) -> list[Path]:
    """The files of the run directory itself, without those in a shared folder and those of removed tasks."""
    aside = [run.root / "removed", *([run.shared] if run.shared is not None else [])]
    return [path for path in _below(run.root) if not any(path.is_relative_to(folder) for folder in aside)]


def _below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if not path.is_dir())


def _stale(settings: Settings, run: Run) -> Iterator[str]:
    """The experts that were trained in another stream, in words."""
    for rules, trained in _trained(settings, run):
        for task in trained:
            try:
                require_stream(rules, settings, run, [task])
            except StaleArtifact as error:
                yield error.message
