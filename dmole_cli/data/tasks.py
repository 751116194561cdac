"""The tasks of a command: their cards, their splits, and digests of these; a split is read once per command."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Self

from dmole_cli.artifacts.image_digests import ImageDigests
from dmole_cli.artifacts.run import Run
from dmole_cli.data.card import TaskCard, is_built_in, load_card, task_name, unknown_task
from dmole_cli.data.digests import data_digest
from dmole_cli.data.loading import samples
from dmole_cli.data.sample import Sample
from dmole_cli.settings.model import Settings


class Tasks:
    """Cards and samples of tasks by name.

    Args:
        entries: tasks as they were written, names or paths of cards; a task's name is its only identity.
        data_root: folder at which relative data paths of cards start, None for the card's own folder.
        image_digests: digests of image files.
    """

    def __init__(self, entries: Iterable[str], *, data_root: Path | None, image_digests: ImageDigests) -> None:
        self._entries = {task_name(entry): entry for entry in entries}
        self._configured = [name for name, entry in self._entries.items() if entry.endswith(".toml")]
        self.data_root, self.image_digests = data_root, image_digests
        # Per instance, and not on the methods: a decorated method would keep every instance alive.
        self.card = lru_cache(maxsize=None)(self._card)
        self.samples = lru_cache(maxsize=None)(self._samples)
        self.digest = lru_cache(maxsize=None)(self._digest)

    @classmethod
    def of(cls, settings: Settings, run: Run, *, further: Sequence[str] = ()) -> Self:
        """The tasks of the settings, and further ones that the user named."""
        root = Path(settings.data_root) if settings.data_root else None
        entries = (*further, *settings.tasks, *settings.unseen)
        return cls(entries, data_root=root, image_digests=ImageDigests(run.image_digests()))

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
        return data_digest(self.samples(task, split), self.image_digests)

    def inputs(self, *splits: tuple[str, str]) -> dict[str, str]:
        """(task, split) -> digest, under the names that headers record."""
        return {f"data:{task}/{split}": self.digest(task, split) for task, split in splits}
