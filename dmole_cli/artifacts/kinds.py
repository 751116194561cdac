"""The one table of artifact kinds: name, path, schema, the command that makes it, reader and writer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

D_MOLE = "d-mole"

# What a placeholder of a path may stand for.
_PLACEHOLDERS = {"split": r"train|validation|test", "after": r"\d+"}


@dataclass(frozen=True, eq=False)  # compared and hashed by identity
class Kind:
    """One kind of artifact.

    Attributes:
        name: what it is called.
        path: its path in a run directory. `{task}` stands for a value; a part in square brackets is left out where its value is
            the default.
        schema: the schema that its header names.
        version: version of that schema.
        container: file format: a parquet table, safetensors, or JSON.
        command: the command that makes it; empty for a cache, which only saves time and may be deleted.
        reader: function that reads it, as `module.function` of `dmole_cli.artifacts`.
        writer: function that writes it.
        columns: column -> type of a parquet table, as Arrow writes types.
        shared: whether it depends on backbone and task alone, so that several runs may share it (`--shared`).
        defaults: placeholder -> the value that is left out of the path.
    """

    name: str
    path: str
    schema: str
    version: int
    container: Literal["table", "tensors", "json"]
    command: str
    reader: str
    writer: str
    columns: Mapping[str, str] = field(default_factory=dict)
    shared: bool = False
    defaults: Mapping[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """The folder of a run directory that holds it; for the split that has the plain name."""
        return re.sub(r"\[.*?\]", "", self.path).partition("/")[0]

    def path_for(self, **values: str) -> str:
        """The path below a run directory, with these values of the placeholders."""

        def optional(match: re.Match[str]) -> str:
            [name] = re.findall(r"{(\w+)}", match[1])
            return "" if values[name] == self.defaults[name] else match[1]

        return re.sub(r"\[(.*?)\]", optional, self.path).format(**values)

    def parse(self, path: str) -> dict[str, str] | None:
        """The values of the placeholders in a path below a run directory; None for a path of another kind."""
        return self._values(re.fullmatch(self._pattern, path))

    def parse_end(self, path: str) -> dict[str, str] | None:
        """The values of the placeholders in a path that ends as one of this kind does; None for others."""
        return self._values(re.search(f"(?:^|/){self._pattern}$", path))

    @cached_property
    def _pattern(self) -> str:
        pattern = re.escape(self.path)
        pattern = pattern.replace(r"\[", "(?:").replace(r"\]", ")?").replace(r"\{", "{").replace(r"\}", "}")
        return re.sub(r"{(\w+)}", lambda m: f"(?P<{m[1]}>{_PLACEHOLDERS.get(m[1], '[^/]+?')})", pattern)

    def _values(self, found: re.Match[str] | None) -> dict[str, str] | None:
        if found is None:
            return None
        return {**self.defaults, **{name: value for name, value in found.groupdict().items() if value is not None}}


_OF_METHOD: Mapping[str, str] = {"method": D_MOLE}
_TEST: Mapping[str, str] = {"split": "test"}
_TEXTS = "list<item: string>"
_EVALUATION: Mapping[str, str] = {
    **dict.fromkeys(("sample_id", "question", "prediction", "details"), "string"),
    **dict.fromkeys(("references", "active", "images"), _TEXTS),
    "score": "double",
    "losses": "list<item: double>",
}

PROFILE = Kind(
    name="profile",
    path="profiles/{task}.parquet",
    schema="dmole.profile",
    version=2,
    container="table",
    command="profile",
    reader="profile.read_profile",
    writer="profile.write_profile",
    columns={
        **dict.fromkeys(("site", "modality", "kind"), "string"),
        **dict.fromkeys(("block", "in_features", "out_features", "parameters", "batches", "samples"), "int64"),
        **dict.fromkeys(("score", "norm_mean", "norm_std"), "double"),
    },
    shared=True,
)
ALLOCATION = Kind(
    name="allocation",
    path="allocations/[{method}/]{task}.json",
    schema="dmole.allocation",
    version=2,
    container="json",
    command="allocate",
    reader="allocation.read_allocation",
    writer="allocation.write_allocation",
    defaults=_OF_METHOD,
)
FEATURES = Kind(
    name="features",
    path="features/{task}[.{split}].parquet",
    schema="dmole.features",
    version=3,
    container="table",
    command="train-router",
    reader="features.read_features",
    writer="features.write_features",
    columns={"sample_id": "string", "key": "string", "feature": "list<item: float>"},
    shared=True,
    defaults={"split": "train"},
)
ROUTER = Kind(
    name="router",
    path="routers/{task}.safetensors",
    schema="dmole.router",
    version=2,
    container="tensors",
    command="train-router",
    reader="router.read_router",
    writer="router.write_router",
    shared=True,
)
EXPERT = Kind(
    name="expert",
    path="experts/[{method}/]{task}.safetensors",
    schema="dmole.expert",
    version=2,
    container="tensors",
    command="train-task",
    reader="expert.read_expert",
    writer="expert.write_expert",
    defaults=_OF_METHOD,
)
MEMORY = Kind(
    name="memory",
    path="memories/[{method}/]{task}.safetensors",
    schema="dmole.memory",
    version=2,
    container="tensors",
    command="train-task",
    reader="memory.read_memory",
    writer="memory.write_memory",
    defaults=_OF_METHOD,
)
# The state of a training run that has not ended; it only saves time.
CHECKPOINT = Kind(
    name="checkpoint",
    path="checkpoints/[{method}/]{task}.safetensors",
    schema="dmole.checkpoint",
    version=2,
    container="tensors",
    command="",
    reader="checkpoint.read_checkpoint",
    writer="checkpoint.write_checkpoint",
    defaults=_OF_METHOD,
)
# Nothing is made from it.
TRAINING_LOG = Kind(
    name="figures of training steps",
    path="training/{method}/{task}.parquet",
    schema="dmole.training",
    version=1,
    container="table",
    command="",
    reader="training_log.read_training_log",
    writer="training_log.write_training_log",
    columns={
        "step": "int64",
        **dict.fromkeys(("loss", "penalty", "learning_rate", "gradient_norm"), "double"),
        "tokens": "int64",
        "seconds": "double",
    },
)
EVALUATION = Kind(
    name="evaluation",
    path="evaluations[.{split}]/{method}/{after}/{task}.parquet",
    schema="dmole.evaluation",
    version=2,
    container="table",
    command="evaluate",
    reader="evaluation.read_evaluation",
    writer="evaluation.write_evaluation",
    columns=_EVALUATION,
    defaults=_TEST,
)
RESCORED = Kind(
    name="rescored evaluation",
    path="rescored/{metric}/evaluations[.{split}]/{method}/{after}/{task}.parquet",
    schema="dmole.evaluation",
    version=2,
    container="table",
    command="rescore",
    reader="evaluation.read_evaluation",
    writer="evaluation.write_evaluation",
    columns=_EVALUATION,
    defaults=_TEST,
)
LIKELIHOOD = Kind(
    name="likelihood",
    path="likelihoods[.{split}]/{method}/{after}/{task}.parquet",
    schema="dmole.likelihood",
    version=2,
    container="table",
    command="evaluate --likelihood",
    reader="likelihood.read_likelihood",
    writer="likelihood.write_likelihood",
    columns={"sample_id": "string", "log_likelihood": "double", "ranked_first": "bool", "active": _TEXTS},
    defaults=_TEST,
)
GENERATIONS = Kind(
    name="cache of predictions",
    path="generations/{task}[.{split}].parquet",
    schema="dmole.generations",
    version=2,
    container="table",
    command="",
    reader="generations.read_generations",
    writer="generations.write_generations",
    columns={"key": "string", "answer": "string"},
    defaults=_TEST,
)
LIKELIHOOD_CACHE = Kind(
    name="cache of likelihoods",
    path="likelihoods[.{split}]/cache/{task}.parquet",
    schema="dmole.likelihoods-kept",
    version=2,
    container="table",
    command="",
    reader="likelihood.read_likelihood_cache",
    writer="likelihood.write_likelihood_cache",
    columns={"key": "string", "sums": "list<item: double>", "tokens": "list<item: int32>"},
    defaults=_TEST,
)
# Not in a run directory: a folder that the user names, with this file in it.
EXPORT = Kind(
    name="export",
    path="dmole.json",
    schema="dmole.export",
    version=2,
    container="json",
    command="export",
    reader="export.read_export_header",
    writer="export.write_export_header",
)

KINDS = (
    PROFILE, ALLOCATION, FEATURES, ROUTER, EXPERT, MEMORY, CHECKPOINT, TRAINING_LOG, EVALUATION, RESCORED, LIKELIHOOD,
    GENERATIONS, LIKELIHOOD_CACHE, EXPORT,
)  # fmt: skip


def values_in(path: Path, schema: str) -> dict[str, str] | None:
    """The values of the placeholders that a path states, whatever directory it lies in; None for a path of another layout.

    Args:
        path: of an artifact.
        schema: of its header. Rescored evaluations have the schema of evaluations.
    """
    kinds = sorted(
        (kind for kind in KINDS if kind.schema == schema and kind is not EXPORT), key=lambda kind: -len(kind.path)
    )
    found = (kind.parse_end(path.absolute().as_posix()) for kind in kinds)
    return next((values for values in found if values is not None), None)
