"""The matrices of one expert, and how a new one is initialised."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from dmole_cli.artifacts.expert import read_expert


@dataclass
class MatrixGradients:
    """Where the backward pass writes the gradients of one site's matrices.

    Attributes:
        a: of A [rank, in].
        b: of the transposed B [rank, out].
        reached: whether they hold a gradient; further ones are added to it.
    """

    a: torch.Tensor
    b: torch.Tensor
    reached: bool = False


@dataclass
class Expert:
    """The matrices of one expert.

    Attributes:
        sites: site -> (A [rank, in], B [out, rank]), float32.
        scale: alpha / rank.
        trainable: whether A and B take gradients.
        gates: site -> name -> tensor where the expert is a mixture, which weighs parts of A and B: the ranks are split evenly
            among the parts, in order. The names say which mixture it is (mixtures.py).
        buffers: the same, of tensors that do not train.
        gradients: site -> where the backward pass writes the gradients of A and B; empty to leave them to autograd.
    """

    sites: dict[str, tuple[torch.Tensor, torch.Tensor]]
    scale: float
    trainable: bool = False
    gates: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    buffers: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    gradients: dict[str, MatrixGradients] = field(default_factory=dict)

    def parameters(self) -> Iterator[torch.Tensor]:
        """A and B of every site, and its gates if it has some, in a fixed order."""
        for site in sorted(self.sites):
            yield from self.parameters_of(site)

    def parameters_of(self, site: str) -> Iterator[torch.Tensor]:
        """A and B of a site, and its gates in the order of their names."""
        yield from self.sites[site]
        yield from (gate for _, gate in sorted(self.gates.get(site, {}).items()))


def load_expert(path: Path) -> Expert:
    """A stored expert, frozen.

    Raises:
        ArtifactError: the file is missing, damaged or of another kind.
    """
    file = read_expert(path)
    return Expert(file.sites, file.scale, gates=file.gates, buffers=file.buffers)


def new_expert(
    shapes: Mapping[str, tuple[int, int, int]],
    *,
    scale: float,
    generator: torch.Generator,
    device: torch.device | str | Callable[[str], torch.device] = "cpu",
) -> Expert:
    """Initialise an expert as LoRA does (arXiv 2106.09685): A Kaiming-uniform, B zero, so that the output is unchanged.

    Args:
        shapes: site -> (rank, in_features, out_features).
        scale: alpha / rank.
        generator: a CPU generator, so that every device starts from the same numbers; sites are initialised in the order
            of `shapes`.
        device: of the expert's tensors, or a function that gives that of a site.
    """
    sites = {}
    for site, (rank, width_in, width_out) in shapes.items():
        place = device(site) if callable(device) else device
        a = torch.empty(rank, width_in)
        nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=generator)
        b = torch.zeros(width_out, rank, device=place)
        sites[site] = (a.to(place).requires_grad_(), b.requires_grad_())
    return Expert(sites, scale, trainable=True)
