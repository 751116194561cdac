"""Which artifact of which task lies where in a run directory; `ls` of it is a progress bar."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

D_MOLE = "d-mole"


# What depends on the backbone and the task alone, not on order, budget, seed or method, and the stages that make it.
SHARED_FOLDERS = frozenset({"profiles", "features", "routers"})
SHARED_STAGES = frozenset({"profile", "train-router"})


@dataclass(frozen=True)
class Run:
    """Paths of one run directory.

    Attributes:
        root: the run directory.
        shared: where profiles, features and routers lie, for several runs; None for the run directory itself.
    """

    root: Path
    shared: Path | None = None

    def base(self, folder: str) -> Path:
        """The directory that a folder of artifacts lies in."""
        return self.shared if self.shared is not None and folder in SHARED_FOLDERS else self.root

    def name_of(self, path: Path) -> str:
        """The name of an artifact in headers: its path below the directory that holds it, wherever that lies."""
        return path.relative_to(self.base(path.parent.name)).as_posix()

    def path_of(self, name: str) -> Path:
        """The artifact that a header calls by this name."""
        return self.base(name.partition("/")[0]) / name

    def profile(self, task: str) -> Path:
        """Layer sensitivity of a task."""
        return self.base("profiles") / "profiles" / f"{task}.parquet"

    def allocation(self, task: str, method: str = D_MOLE) -> Path:
        """Placement of a task's experts; methods other than the main one have a folder of their own."""
        return self._of_method("allocations", method) / f"{task}.json"

    def features(self, task: str, split: str = "train") -> Path:
        """Routing features of a task's samples; the training split has the plain name."""
        return (
            self.base("features") / "features" / (f"{task}.parquet" if split == "train" else f"{task}.{split}.parquet")
        )

    def router(self, task: str) -> Path:
        """Autoencoder and threshold of a task."""
        return self.base("routers") / "routers" / f"{task}.safetensors"

    def expert(self, task: str, method: str = D_MOLE) -> Path:
        """Tensors trained at a task's stage; methods other than the main one have a folder of their own."""
        return self._of_method("experts", method) / f"{task}.safetensors"

    def memory(self, task: str, method: str) -> Path:
        """What a method keeps of a task beside its expert."""
        return self._of_method("memories", method) / f"{task}.safetensors"

    def _of_method(self, folder: str, method: str) -> Path:
        return self.root / folder if method == D_MOLE else self.root / folder / method

    def evaluations(self, split: str = "test") -> Path:
        """All evaluations on a split; the test split has the plain name."""
        return self.root / ("evaluations" if split == "test" else f"evaluations.{split}")

    def evaluation(self, method: str, stage: int, task: str, split: str = "test") -> Path:
        """A row per sample of a task's split after a stage (0 = the pretrained backbone)."""
        return self.evaluations(split) / method / str(stage) / f"{task}.parquet"

    def rescored(self, metric: str) -> Run:
        """Where evaluations that were scored again by another metric lie, in the layout of a run directory."""
        return Run(self.root / "rescored" / metric)

    def likelihoods(self, split: str = "test") -> Path:
        """All likelihoods of reference answers on a split; the test split has the plain name."""
        return self.root / ("likelihoods" if split == "test" else f"likelihoods.{split}")

    def likelihood(self, method: str, stage: int, task: str, split: str = "test") -> Path:
        """A row per sample of a task's split after a stage (0 = the pretrained backbone)."""
        return self.likelihoods(split) / method / str(stage) / f"{task}.parquet"

    def likelihood_cache(self, task: str, split: str = "test") -> Path:
        """Likelihoods already computed for a task's samples, by content key."""
        return self.likelihoods(split) / "cache" / f"{task}.parquet"

    def generations(self, task: str, split: str = "test") -> Path:
        """Answers already generated for a task's samples, by content key; the test split has the plain name."""
        return self.root / "generations" / (f"{task}.parquet" if split == "test" else f"{task}.{split}.parquet")

    def image_digests(self) -> Path:
        """Digests of picture files that were read once; a cache that depends on the files' times, no artifact."""
        return self.base("features") / "cache" / "pictures.parquet"

    def cost(self, stage: str, task: str) -> Path:
        """Seconds a stage took: beside the artifacts, never inside them, because time is not reproducible."""
        base = self.shared if self.shared is not None and stage in SHARED_STAGES else self.root
        return base / "costs" / stage / f"{task}.json"
