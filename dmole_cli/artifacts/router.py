"""`routers/<task>.safetensors`: a task's autoencoder; threshold, quantiles and feature layout in the header."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, Field, FiniteFloat

from dmole_cli.artifacts.errors import DamagedArtifact
from dmole_cli.artifacts.kinds import ROUTER
from dmole_cli.artifacts.provenance import Header, validated
from dmole_cli.artifacts.tensors import read_arrays, read_tensors, write_tensors

if TYPE_CHECKING:
    import torch

FACTS = ("threshold", "quantiles", "layout", "decoder")
# Parts of the autoencoder: name -> the sizes that its shape consists of.
SHAPES = {
    "encoder.0.weight": ("hidden", "width"),
    "encoder.0.bias": ("hidden",),
    "decoder.0.weight": ("width", "hidden"),
    "decoder.0.bias": ("width",),
}


class _Part(BaseModel):
    width: int = Field(ge=1)


class _Facts(BaseModel):
    """What the reader of a router needs from its header."""

    threshold: FiniteFloat = Field(ge=0)
    quantiles: dict[str, FiniteFloat]
    layout: list[_Part] = Field(min_length=1)
    decoder: Literal["sigmoid", "linear"]
    margin: FiniteFloat | None = Field(default=None, ge=0)


@dataclass(frozen=True)
class RouterFile:
    """A router as it is stored.

    Attributes:
        tensors: `encoder.0.weight` [hidden, width], `encoder.0.bias`, `decoder.0.weight` [width, hidden], `decoder.0.bias`.
        threshold: reconstruction loss (mean squared error) below which the router accepts a sample.
        quantiles: summary of the held-out losses (min, 0.10 ... 0.99, max, mean, std).
        layout: parts of the feature in order, with their widths.
        decoder: `sigmoid` or `linear`.
        header: provenance.
        margin: upper limit of the threshold of a router that was trained with `--balance`; None for others.
    """

    tensors: dict[str, torch.Tensor]
    threshold: float
    quantiles: dict[str, float]
    layout: list[dict[str, Any]]
    decoder: str
    header: Header
    margin: float | None = None


def write_router(path: Path, router: RouterFile) -> None:
    """Write a router."""
    facts = {key: getattr(router, key) for key in FACTS}
    if router.margin is not None:
        facts["margin"] = router.margin
    write_tensors(path, router.tensors, replace(router.header, facts=facts))


def read_router(path: Path) -> RouterFile:
    """Read a router.

    Raises:
        ArtifactError: the file is missing, damaged or of another kind.
    """
    tensors, header = read_tensors(path, ROUTER)
    return _checked(path, tensors, header)


def read_router_arrays(path: Path) -> RouterFile:
    """Read a router for computations in numpy: its `tensors` are arrays, and torch is not imported.

    Raises:
        ArtifactError: the file is missing, damaged or of another kind.
    """
    arrays, header = read_arrays(path, ROUTER)
    return _checked(path, arrays, header)


def _checked(path: Path, tensors: dict[str, Any], header: Header) -> RouterFile:
    facts = validated(_Facts, dict(header.facts), path=path)
    sizes = {"width": sum(part.width for part in facts.layout)}
    if tensors.keys() == SHAPES.keys() and tensors["encoder.0.bias"].ndim == 1:
        sizes["hidden"] = tensors["encoder.0.bias"].shape[0]
    expected = {name: tuple(sizes.get(size, -1) for size in shape) for name, shape in SHAPES.items()}
    if {name: tuple(tensor.shape) for name, tensor in tensors.items()} != expected:
        raise DamagedArtifact(path, f"{path} is damaged: its tensors are not those of an autoencoder of its layout")
    stated = {key: header.facts[key] for key in FACTS}
    return RouterFile(tensors=tensors, header=header, margin=facts.margin, **stated)
