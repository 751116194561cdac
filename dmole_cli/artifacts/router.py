"""`routers/<task>.safetensors`: a task's autoencoder; threshold, quantiles and feature layout in the header."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmole_cli.artifacts.kinds import ROUTER
from dmole_cli.artifacts.provenance import Header, require_facts
from dmole_cli.artifacts.tensors import read_tensors, write_tensors

if TYPE_CHECKING:
    import torch

FACTS = ("threshold", "quantiles", "layout", "decoder")


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
    """

    tensors: dict[str, torch.Tensor]
    threshold: float
    quantiles: dict[str, float]
    layout: list[dict[str, Any]]
    decoder: str
    header: Header


def write_router(path: Path, router: RouterFile) -> None:
    """Write a router."""
    facts = {key: getattr(router, key) for key in FACTS}
    write_tensors(path, router.tensors, replace(router.header, facts=facts))


def read_router(path: Path) -> RouterFile:
    """Read a router."""
    tensors, header = read_tensors(path, ROUTER)
    require_facts(header, FACTS, path=path)
    return RouterFile(tensors=tensors, header=header, **{key: header.facts[key] for key in FACTS})
