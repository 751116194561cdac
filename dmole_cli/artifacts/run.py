"""The run directory: which artifact of which task lies where. `ls` of it shows the progress of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dmole_cli.artifacts.kinds import (
    ALLOCATION,
    CHECKPOINT,
    D_MOLE,
    EVALUATION,
    EXPERT,
    EXPORT,
    FEATURES,
    GENERATIONS,
    KINDS,
    LIKELIHOOD,
    LIKELIHOOD_CACHE,
    MEMORY,
    PROFILE,
    RESCORED,
    ROUTER,
    TRAINING_LOG,
    Kind,
)

SHARED_FOLDERS = frozenset(kind.folder for kind in KINDS if kind.shared)
SHARED_STAGES = frozenset(kind.command for kind in KINDS if kind.shared)


@dataclass(frozen=True)
class Run:
    """Paths of one run directory.

    Attributes:
        root: the run directory.
        shared: folder of profiles, features and routers, which several runs may share; None for the run directory itself.
    """

    root: Path
    shared: Path | None = None

    def path(self, kind: Kind, **values: str) -> Path:
        """The path of an artifact; `values` replace the placeholders of the kind's path."""
        return self._base(kind.folder) / kind.path_for(**values)

    def identify(self, path: Path) -> tuple[Kind, dict[str, str]] | None:
        """The kind of an artifact by its path, with the values of the placeholders; None for other files."""
        for kind in (kind for kind in KINDS if kind is not EXPORT):  # exports lie outside of run directories
            base = self._base(kind.folder)
            if path.is_relative_to(base) and (found := kind.parse(path.relative_to(base).as_posix())) is not None:
                return kind, found
        return None

    def name_of(self, path: Path) -> str:
        """The name of an artifact in headers: its path below the directory that holds it."""
        return path.relative_to(self._base(path.parent.name)).as_posix()

    def path_of(self, name: str) -> Path:
        """The artifact that a header refers to by this name."""
        return self._base(name.partition("/")[0]) / name

    def _base(self, folder: str) -> Path:
        return self.shared if self.shared is not None and folder in SHARED_FOLDERS else self.root

    def profile(self, task: str) -> Path:
        """Layer sensitivity of a task."""
        return self.path(PROFILE, task=task)

    def allocation(self, task: str, method: str = D_MOLE) -> Path:
        """Placement of a task's experts."""
        return self.path(ALLOCATION, task=task, method=method)

    def features(self, task: str, split: str = "train") -> Path:
        """Routing features of a task's samples."""
        return self.path(FEATURES, task=task, split=split)

    def router(self, task: str) -> Path:
        """Autoencoder and threshold of a task."""
        return self.path(ROUTER, task=task)

    def expert(self, task: str, method: str = D_MOLE) -> Path:
        """Tensors that were trained for a task."""
        return self.path(EXPERT, task=task, method=method)

    def memory(self, task: str, method: str) -> Path:
        """What a method stores of a task beside its expert."""
        return self.path(MEMORY, task=task, method=method)

    def checkpoint(self, task: str, method: str = D_MOLE) -> Path:
        """State of a task's training that has not ended."""
        return self.path(CHECKPOINT, task=task, method=method)

    def training_log(self, task: str, method: str = D_MOLE) -> Path:
        """Figures of the steps that trained a task's expert."""
        return self.path(TRAINING_LOG, task=task, method=method)

    def evaluations(self, split: str = "test") -> Path:
        """Folder of all evaluations on a split."""
        return self.evaluation("method", 0, "task", split).parents[2]

    def evaluation(self, method: str, after: int, task: str, split: str = "test") -> Path:
        """Predictions and scores of a task's split after that many tasks (0 is the pretrained backbone)."""
        return self.path(EVALUATION, method=method, after=str(after), task=task, split=split)

    def rescored(self, metric: str) -> Run:
        """Where evaluations that were scored again by another metric lie, in the layout of a run directory."""
        return Run(self.root / RESCORED.folder / metric)

    def likelihoods(self, split: str = "test") -> Path:
        """Folder of all likelihoods of reference answers on a split."""
        return self.likelihood("method", 0, "task", split).parents[2]

    def likelihood(self, method: str, after: int, task: str, split: str = "test") -> Path:
        """Likelihoods of a task's reference answers after that many tasks (0 is the pretrained backbone)."""
        return self.path(LIKELIHOOD, method=method, after=str(after), task=task, split=split)

    def likelihood_cache(self, task: str, split: str = "test") -> Path:
        """Likelihoods that were computed for a task's samples, by content key."""
        return self.path(LIKELIHOOD_CACHE, task=task, split=split)

    def generations(self, task: str, split: str = "test") -> Path:
        """Predictions that were generated for a task's samples, by content key."""
        return self.path(GENERATIONS, task=task, split=split)

    def image_digests(self) -> Path:
        """Digests of image files by size and modification time: a cache, not an artifact."""
        return self._base(FEATURES.folder) / "cache" / "images.sqlite"

    def usage(self, method: str = D_MOLE) -> Path:
        """Which experts of a method were active for the latest requests: see `artifacts/usage.py`."""
        return self.root / "usage" / ("" if method == D_MOLE else method) / "activation.sqlite"

    def removed(self, task: str) -> Run:
        """Where the files of a task lie that was taken out of the stream, in the layout of a run directory."""
        return Run(self.root / "removed" / task)

    def imported(self, task: str) -> Path:
        """The record of a task that came from a bundle: which files, and their digests."""
        return self.root / "bundles" / f"{task}.json"

    def cost(self, stage: str, task: str) -> Path:
        """Seconds that a stage took: beside the artifacts and not in them, because time is not reproducible."""
        base = self.shared if self.shared is not None and stage in SHARED_STAGES else self.root
        return base / "costs" / stage / f"{task}.json"
