"""The one table of artifact kinds: name, path, schema, the command that makes it, reader and writer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

D_MOLE = "d-mole"

# What a placeholder of a path may stand for.
_PLACEHOLDERS = {"split": r"train|validation|test", "after": r"\d+"}


@dataclass(frozen=True)
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
        pattern = re.escape(self.path)
        pattern = pattern.replace(r"\[", "(?:").replace(r"\]", ")?").replace(r"\{", "{").replace(r"\}", "}")
        pattern = re.sub(r"{(\w+)}", lambda m: f"(?P<{m[1]}>{_PLACEHOLDERS.get(m[1], '[^/]+?')})", pattern)
        found = re.fullmatch(pattern, path)
        if found is None:
            return None
        return {**self.defaults, **{name: value for name, value in found.groupdict().items() if value is not None}}


_OF_METHOD: Mapping[str, str] = {"method": D_MOLE}
_TEST: Mapping[str, str] = {"split": "test"}

PROFILE = Kind(
    name="profile",
    path="profiles/{task}.parquet",
    schema="dmole.profile",
    version=1,
    container="table",
    command="profile",
    reader="profile.read_profile",
    writer="profile.write_profile",
    shared=True,
)
ALLOCATION = Kind(
    name="allocation",
    path="allocations/[{method}/]{task}.json",
    schema="dmole.allocation",
    version=1,
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
    version=2,
    container="table",
    command="train-router",
    reader="features.read_features",
    writer="features.write_features",
    shared=True,
    defaults={"split": "train"},
)
ROUTER = Kind(
    name="router",
    path="routers/{task}.safetensors",
    schema="dmole.router",
    version=1,
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
    version=1,
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
    version=1,
    container="tensors",
    command="train-task",
    reader="memory.read_memory",
    writer="memory.write_memory",
    defaults=_OF_METHOD,
)
EVALUATION = Kind(
    name="evaluation",
    path="evaluations[.{split}]/{method}/{after}/{task}.parquet",
    schema="dmole.evaluation",
    version=1,
    container="table",
    command="evaluate",
    reader="evaluation.read_evaluation",
    writer="evaluation.write_evaluation",
    defaults=_TEST,
)
RESCORED = Kind(
    name="rescored evaluation",
    path="rescored/{metric}/evaluations[.{split}]/{method}/{after}/{task}.parquet",
    schema="dmole.evaluation",
    version=1,
    container="table",
    command="rescore",
    reader="evaluation.read_evaluation",
    writer="evaluation.write_evaluation",
    defaults=_TEST,
)
LIKELIHOOD = Kind(
    name="likelihood",
    path="likelihoods[.{split}]/{method}/{after}/{task}.parquet",
    schema="dmole.likelihood",
    version=1,
    container="table",
    command="evaluate --likelihood",
    reader="likelihood.read_likelihood",
    writer="likelihood.write_likelihood",
    defaults=_TEST,
)
GENERATIONS = Kind(
    name="cache of predictions",
    path="generations/{task}[.{split}].parquet",
    schema="dmole.generations",
    version=1,
    container="table",
    command="",
    reader="generations.read_generations",
    writer="generations.write_generations",
    defaults=_TEST,
)
LIKELIHOOD_CACHE = Kind(
    name="cache of likelihoods",
    path="likelihoods[.{split}]/cache/{task}.parquet",
    schema="dmole.likelihoods-kept",
    version=1,
    container="table",
    command="",
    reader="likelihood.read_likelihood_cache",
    writer="likelihood.write_likelihood_cache",
    defaults=_TEST,
)
# Not in a run directory: a folder that the user names, with this file in it.
EXPORT = Kind(
    name="export",
    path="dmole.json",
    schema="dmole.export",
    version=1,
    container="json",
    command="export",
    reader="export.read_export_header",
    writer="export.write_export_header",
)

KINDS = (
    PROFILE, ALLOCATION, FEATURES, ROUTER, EXPERT, MEMORY, EVALUATION, RESCORED, LIKELIHOOD, GENERATIONS, LIKELIHOOD_CACHE,
    EXPORT,
)  # fmt: skip
