"""How a method weights the experts of its tasks for each sample, where they do not all count alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from dmole_cli.experts.expert import Expert


@dataclass(frozen=True)
class Part:
    """Matrices that are computed beside the backbone with one weight per sample.

    Attributes:
        expert: the matrices.
        task: whose weight a sample's part has; None for parts that every sample passes through alike.
        weight: a constant factor.
    """

    expert: Expert
    task: str | None = None
    weight: float = 1.0


class Weighting(Protocol):
    """Distances of samples to trained tasks, the weights that follow from them, and what is weighted.

    Attributes:
        options: the values that distances, weights and parts depend on beside the tasks' artifacts.
    """

    options: Mapping[str, float]

    def distances(self, features: torch.Tensor) -> torch.Tensor:
        """Distances [samples, tasks] of routing features [samples, width]."""

    def weights(self, distances: Sequence[float]) -> tuple[float, ...]:
        """The weight of each task for one sample, from its distances to the tasks."""

    def parts(self, experts: Mapping[str, Expert], model: nn.Module) -> list[Part]:
        """The parts of the experts of these tasks.

        Args:
            experts: task -> expert, in the order of the stream.
            model: the backbone.
        """


class AttachedParts:
    """The parts of some sets of experts, under the names with which they are attached.

    Args:
        weightings: set of tasks -> how their experts are weighted.
        experts: task -> expert, of all sets.
        model: the backbone.

    Attributes:
        parts: name -> part, of all sets.
    """

    def __init__(
        self,
        weightings: Mapping[tuple[str, ...], Weighting],
        experts: Mapping[str, Expert],
        model: nn.Module,
    ) -> None:
        self._sets = {
            tasks: {
                f"{' + '.join(tasks)} ({number})": part
                for number, part in enumerate(weighting.parts({task: experts[task] for task in tasks}, model))
            }
            for tasks, weighting in weightings.items()
        }
        self.parts = {name: part for parts in self._sets.values() for name, part in parts.items()}

    def route(self, tasks: tuple[str, ...], weights: Sequence[float]) -> dict[str, float]:
        """The weight of each part that a sample passes through.

        Args:
            tasks: whose experts are active.
            weights: of these tasks.
        """
        own = dict(zip(tasks, weights, strict=True))
        return {
            name: part.weight * (1.0 if part.task is None else own[part.task])
            for name, part in self._sets[tasks].items()
        }
