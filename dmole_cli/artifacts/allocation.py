"""`allocations/<task>.json`: the sites that host an expert of a task, and the figures to verify the decision by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, field_validator

from dmole_cli.artifacts.errors import DamagedArtifact, require_file
from dmole_cli.artifacts.files import digest_of, write_json
from dmole_cli.artifacts.kinds import ALLOCATION
from dmole_cli.artifacts.provenance import Header, parse_header, validated, verify_content
from dmole_cli.settings.documents import read_json

KEYS = ("task", "budget", "rank", "alpha", "spent", "modalities", "sites")


class _Document(BaseModel):
    """The keys that readers of an allocation need."""

    model_config = ConfigDict(extra="allow")

    task: str
    budget: str
    rank: int = Field(ge=1)
    alpha: FiniteFloat = Field(gt=0)
    spent: dict[str, FiniteFloat | None]  # None: a share of a backbone of unknown size
    modalities: dict[str, dict[str, Any]]
    sites: list[str]

    @field_validator("sites")
    @classmethod
    def _each_once(cls, sites: list[str]) -> list[str]:
        if len(set(sites)) != len(sites):
            raise ValueError("a site is listed twice")
        return sites


def write_allocation(path: Path, document: dict[str, Any], header: Header) -> None:
    """Write an allocation (the keys of `KEYS`), its header under `provenance`."""
    content = {key: document[key] for key in KEYS}
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
