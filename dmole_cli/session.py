"""What the stages of one command share: the configuration, the run directory, the backbone (loaded once, when needed)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from dmole_cli.artifacts.files import digest_of_file
from dmole_cli.artifacts.image_digests import ImageDigests
from dmole_cli.artifacts.outcome import clocked
from dmole_cli.artifacts.run import Run
from dmole_cli.data.loading import TaskCard, load_card, samples, task_name
from dmole_cli.data.sample import Sample
from dmole_cli.errors import DmoleError
from dmole_cli.settings.model import Config

if TYPE_CHECKING:
    import torch

    from dmole_cli.backbones.backbone import Backbone
    from dmole_cli.backbones.loading import Loading

# Shared options that a subcommand does not have.
# Profiles and routers have a seed of their own, because they do not change with the run's; routing features are float32.
WITHOUT = {
    "allocate": ("seed", "data_root", "device", "precision"),
    "evaluate": ("seed",),
    "export": ("seed", "data_root", "precision"),
    "import": ("seed", "data_root", "device", "precision"),
    "profile": ("seed",),
    "train-router": ("seed", "precision"),
}


class Session:
    """Shared state of one command; nothing here is written to disk.

    Args:
        config: the settings.
        run: the run directory.
        given: the shared options as the user typed them (`--run`, `--config` ...), repeated in the commands we propose.
    """

    def __init__(self, config: Config, run: Run, *, given: Mapping[str, str] | None = None) -> None:
        # A task may be listed as the path of a card; its name is the only identity it has.
        self._entries = {task_name(entry): entry for entry in (*config.tasks, *config.unseen)}
        names = tuple(self._entries)
        self.config = replace(config, tasks=names[: len(config.tasks)], unseen=names[len(config.tasks) :])
        self.run, self.given = run, dict(given or {})
        self._cards: dict[str, TaskCard] = {}
        self._samples: dict[tuple[str, str], Sequence[Sample]] = {}
        self.image_digests = ImageDigests(run.image_digests())
        self._digests: dict[tuple[str, str], str] = {}

    @cached_property
    def fingerprint(self) -> str:
        """Of the backbone's files, and how they are loaded where that is not as plain weights; does not load the model."""
        from dmole_cli.backbones.loading import fingerprint_of

        return fingerprint_of(self.config.backbone) + str(self.loading)

    @cached_property
    def loading(self) -> Loading:
        """Type and form of the backbone's weights."""
        from dmole_cli.backbones.loading import Loading

        return Loading(self.config.dtype, self.config.attention, self.config.quantize)

    @cached_property
    def device(self) -> torch.device:
        """Where the backbone computes; does not load it."""
        from dmole_cli.backbones.device import find_device

        return find_device(self.config.device)

    @cached_property
    def precision(self) -> str:
        """What profiling, training and answering compute in, what goes into headers: `float32`, `bfloat16` or `float16`."""
        from dmole_cli.backbones.device import find_precision

        return find_precision(self.config.precision, self.device, dtype=self.config.dtype)

    @cached_property
    def backbone(self) -> Backbone:
        """The loaded model."""
        from dmole_cli.backbones.loading import load_backbone

        return load_backbone(self.config.backbone, device=self.device, precision=self.precision, loading=self.loading)

    def load(self) -> Backbone:
        """The model, loaded before a stage's clock starts: a process loads it once, whatever number of tasks it works on."""
        return self.backbone

    def counts(self) -> Counter[str]:
        """What the backbone has computed so far; nothing if it was never needed."""
        return self.backbone.counts if "backbone" in self.__dict__ else Counter()

    @contextmanager
    def measured(self, stage: str, task: str, *, adding: bool = False) -> Iterator[None]:
        """The work of a stage, its artifact's writing included: its cost is written when it ended well (see `clocked`).

        What a process loads once, however many tasks it works on, is no task's cost: this library is loaded here, the
        backbone by the stages that always need it, before they enter.
        """
        import pyarrow.parquet  # noqa: F401

        with clocked(self.run.cost(stage, task), self.counts, adding=adding):
            yield
        self.image_digests.save()

    def command(self, subcommand: str, task: str, /, **options: object) -> str:
        """The command line that makes an artifact, as the user would type it in this place."""
        unknown = WITHOUT.get(subcommand, ())
        shared = {key: value for key, value in self.given.items() if key not in unknown}
        extra = "".join(f" --{key.replace('_', '-')} {value}" for key, value in {**options, **shared}.items())
        return f"dmole {subcommand} --task {task}{extra}"

    def admit(self, entry: str) -> str:
        """Give the name of a task that the user typed, a name or the path of a card; reads its card."""
        name = task_name(entry)
        self._entries.setdefault(name, entry)
        self.card(name)
        return name

    def card(self, task: str) -> TaskCard:
        """The card of a task, by the name it has in the configuration."""
        if task not in self._cards:
            self._cards[task] = load_card(self._entries.get(task, task))
        return self._cards[task]

    def samples(self, task: str, split: str) -> Sequence[Sample]:
        """A split of a task; pictures are not opened yet."""
        key = (task, split)
        if key not in self._samples:
            root = Path(self.config.data_root) if self.config.data_root else None
            self._samples[key] = samples(self.card(task), split, data_root=root)
        return self._samples[key]

    def data_digest(self, task: str, split: str) -> str:
        """Digest of a split: texts and pictures."""
        if (task, split) not in self._digests:
            from dmole_cli.data.digests import data_digest

            self._digests[task, split] = data_digest(self.samples(task, split), self.image_digests)
        return self._digests[task, split]

    def digests(self, *paths: Path) -> dict[str, str]:
        """Digests of artifacts by their path relative to the run directory."""
        return {self.run.name_of(path): digest_of_file(path) for path in paths}

    def require_backbone(self, path: Path, fingerprint: str, command: str) -> None:
        """Refuse an artifact of another backbone.

        Raises:
            DmoleError: the fingerprints differ.
        """
        if fingerprint != self.fingerprint:
            raise DmoleError(
                f"{path} was made with another backbone ({_short(fingerprint)}; "
                f"'{self.config.backbone}' is {_short(self.fingerprint)})",
                f"{command} --force makes it again, or pass another --run for this backbone",
            )


def _short(fingerprint: str) -> str:
    """The first digits, and how the backbone was loaded, where that is said."""
    digest, _, loaded = fingerprint.partition(" ")
    return f"{digest[:12]} {loaded}".strip()
