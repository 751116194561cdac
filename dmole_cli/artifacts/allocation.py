"""`allocations/<task>.json`: the sites that host an expert of a task, and the figures to verify the decision by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, PositiveInt, model_validator

from dmole_cli.artifacts.errors import DamagedArtifact, require_file
from dmole_cli.artifacts.files import digest_of, write_json
from dmole_cli.artifacts.kinds import ALLOCATION
from dmole_cli.artifacts.provenance import Header, parse_header, validated, verify_content
from dmole_cli.settings.documents import read_json

KEYS = ("task", "budget", "rank", "alpha", "spent", "modalities", "sites")
# Of an allocation whose sites have ranks of their own.
RANK_KEYS = ("scale", "ranks")


class _Document(BaseModel):
    """The keys that readers of an allocation need."""

    model_config = ConfigDict(extra="allow")

    task: str
    budget: str
    rank: PositiveInt | Literal["auto"]
    alpha: FiniteFloat = Field(gt=0)
    spent: dict[str, FiniteFloat | None]  # None: a share of a backbone of unknown size
    modalities: dict[str, dict[str, Any]]
    sites: list[str]
    scale: FiniteFloat | None = Field(None, gt=0)
    ranks: dict[str, PositiveInt] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.sites)) != len(self.sites):
            raise ValueError("a site is listed twice")
        if self.rank != "auto":
            if self.scale is not None or self.ranks is not None:
                raise ValueError("with one rank for all sites, it has neither a scale nor ranks")
            return self
        if self.scale is None or self.ranks is None or list(self.ranks) != self.sites:
            raise ValueError("with rank auto, it has a scale and the rank of each site")
        return self


def write_allocation(path: Path, document: dict[str, Any], header: Header) -> None:
    """Write an allocation (the keys of `KEYS`, and of `RANK_KEYS` where it has them), its header under `provenance`."""
    content = {key: document[key] for key in (*KEYS, *RANK_KEYS) if key in document or key in KEYS}
    write_json(path, {**content, "provenance": header.sealed(path, digest_of(content)).as_dict()})


def read_allocation(path: Path) -> tuple[dict[str, Any], Header]:
    """Read (allocation, header).

    Raises:
        ArtifactError: the file is missing, damaged, or of another kind.
    """
    document = read_json_object(path)
    header = parse_header(document.pop("provenance", None), path=path, kind=ALLOCATION)
    validated(_Document, document, path=path)
    verify_content(header, digest_of(document), path)
    return document, header


def ranks_of(document: Mapping[str, Any]) -> dict[str, int]:
    """Site -> rank of its expert, in forward order."""
    ranks = document.get("ranks") or dict.fromkeys(document["sites"], document["rank"])
    return {site: int(rank) for site, rank in ranks.items()}


def scale_of(document: Mapping[str, Any]) -> float:
    """alpha / rank, the factor on B A x at all sites."""
    scale = document.get("scale")
    return float(document["alpha"]) / int(document["rank"]) if scale is None else float(scale)


def read_json_object(path: Path) -> dict[str, Any]:
    """Read an artifact that is a JSON object of bounded size and nesting.

    Raises:
        ArtifactError: the file is missing or unreadable, or holds anything else.
    """
    require_file(path)
    try:
        document = read_json(path)
    except (OSError, ValueError) as error:
        raise DamagedArtifact(path, f"{path} is not valid JSON: {error}") from error
    if not isinstance(document, dict):
        raise DamagedArtifact(path, f"{path} does not hold a JSON object")
    return document
