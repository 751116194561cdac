"""The tasks of a command: their cards, their splits, and digests of these; a split is read once per command."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Self

from dmole_cli.artifacts.image_digests import ImageDigests
from dmole_cli.artifacts.provenance import DATA_PREFIX
from dmole_cli.artifacts.run import Run
from dmole_cli.data.card import TaskCard, is_built_in, load_card, same_card, task_name, unknown_task
from dmole_cli.data.digests import data_digest
from dmole_cli.data.loading import samples
from dmole_cli.data.sample import Sample
from dmole_cli.errors import DmoleError, DmoleWarning
from dmole_cli.settings.model import Settings
from dmole_cli.settings.names import same_name


class Tasks:
    """Cards and samples of tasks by name.

    Args:
        entries: tasks as they were written, names or paths of cards; a task's name is its only identity.
        data_root: folder at which relative data paths of cards start, None for the card's own folder.
        image_digests: digests of image files.

    Raises:
        DmoleError: two entries are different tasks of the same name.
    """

    def __init__(self, entries: Iterable[str], *, data_root: Path | None, image_digests: ImageDigests) -> None:
        self._entries: dict[str, str] = {}
        for entry in entries:
            self._add(task_name(entry), entry)
        self._configured = [name for name, entry in self._entries.items() if entry.endswith(".toml")]
        self.data_root, self.image_digests, self._cached = data_root, image_digests, image_digests.cache is not None
        # Per instance, and not on the methods: a decorated method would keep every instance alive.
        self.card = lru_cache(maxsize=None)(self._card)
        self.samples = lru_cache(maxsize=None)(self._samples)
        self.digest = lru_cache(maxsize=None)(self._digest)
        self._warn_unreadable = lru_cache(maxsize=None)(self._warn)  # once

    @classmethod
    def of(cls, settings: Settings, run: Run, *, further: Sequence[str] = ()) -> Self:
        """The tasks of the settings, and further ones that the user named.

        Raises:
            DmoleError: two tasks of the settings have the same name, or a further one has the name of another task.
        """
        root = Path(settings.data_root) if settings.data_root else None
        stream = (*settings.tasks, *settings.unseen)
        names: dict[str, str] = {}
        for entry in stream:
            name = task_name(entry)
            if name in names:
                raise _twice(name, names[name], entry)
            names[name] = entry
        return cls((*stream, *further), data_root=root, image_digests=ImageDigests(run.image_digests()))

    def uncached(self) -> Tasks:
        """The same tasks, whose digests are computed from the files and not taken from a cache."""
        return Tasks(self._entries.values(), data_root=self.data_root, image_digests=ImageDigests(None))

    def _add(self, name: str, entry: str) -> None:
        """Note a task.

        Raises:
            DmoleError: another task has this name, or one that differs by case only.
        """
        for known, other in self._entries.items():
            if same_name(known, name) and (known != name or not same_card(other, entry)):
                raise _twice(name, other, entry)
        self._entries.setdefault(name, entry)

    def _card(self, task: str) -> TaskCard:
        """The card of a task.

        Raises:
            DmoleError: there is no such task; the message proposes the nearest names, those of the stream first.
        """
        entry = self._entries.get(task, task)
        if not entry.endswith(".toml") and not is_built_in(entry):
            raise unknown_task(entry, own=[name for name in self._configured if name != task])
        return load_card(entry)

    def _samples(self, task: str, split: str) -> Sequence[Sample]:
        """A split of a task; images are opened when their pixels are needed."""
        return samples(self.card(task), split, data_root=self.data_root)

    def _digest(self, task: str, split: str) -> str:
        """sha256 over the texts and images of a split."""
        return data_digest(self.samples(task, split), self.image_digests, cached=self._cached)

    def inputs(self, *splits: tuple[str, str]) -> dict[str, str]:
        """(task, split) -> digest, under the names that headers record."""
        return {f"{DATA_PREFIX}{task}/{split}": self.digest(task, split) for task, split in splits}

    def current_digest(self, name: str) -> str | None:
        """The digest of a split by its name in headers; None, with a warning, where its data cannot be read any more.

        An expert of an earlier task stays usable without the task's data, which users are often not allowed to keep.
        """
        task, _, split = name.removeprefix(DATA_PREFIX).rpartition("/")
        try:
            return self.digest(task, split)
        except DmoleError as error:
            self._warn_unreadable(task, split, error.message)
            return None

    def _warn(self, task: str, split: str, reason: str) -> None:
        message = f"artifacts made from the {split} split of task {task} cannot be compared with its data: {reason}"
        warnings.warn(DmoleWarning(message), stacklevel=3)


def _twice(name: str, one: str, other: str) -> DmoleError:
    return DmoleError(
        f"the entries {one!r} and {other!r} both have the task name {name!r}; a task's name is its only identity",
        "name each task once in `tasks` and `unseen`; give one of two cards another file name, or a key `name`",
    )
