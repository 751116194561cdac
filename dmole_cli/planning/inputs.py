"""What a plan depends on, and where it assumes the experts of a task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from dmole_cli.allocation.placement import Placement, SiteScore, allocate
from dmole_cli.artifacts.allocation import read_allocation
from dmole_cli.artifacts.run import Run
from dmole_cli.backbones.lazy_model import LazyModel
from dmole_cli.backbones.sites import Site
from dmole_cli.data.tasks import Tasks
from dmole_cli.errors import DmoleError
from dmole_cli.experts.expert import Expert, new_expert
from dmole_cli.settings.budget import parse_budget
from dmole_cli.settings.model import Settings


@dataclass(frozen=True)
class PlanInputs:
    """What a plan depends on.

    Attributes:
        settings: budget, batch sizes, data type and precision.
        data: the tasks.
        model: the backbone; its weights are not loaded.
        run: the run directory, for allocations that exist.
        sites: candidate sites.
        parameters: number of parameters of the backbone.
    """

    settings: Settings
    data: Tasks
    model: LazyModel
    run: Run
    sites: Sequence[Site]
    parameters: int

    @property
    def micro_batch(self) -> int:
        """Samples of a micro-batch of training; 0 where a step is one, and for `auto`, which is found when training starts."""
        chosen = str(getattr(self.settings.train, "micro_batch", 0))
        return int(chosen) if chosen.isdecimal() else 0

    def placed(self, budget: str) -> Placement:
        """The placement where all sites have the same sensitivity.

        Raises:
            DmoleError: the budget is invalid, or holds no expert.
        """
        chosen = self.settings.allocate
        return allocate(
            [SiteScore(s.name, s.modality, s.expert_parameters(chosen.rank), 1.0) for s in self.sites],
            budget=parse_budget(budget),
            backbone_parameters=self.parameters,
            rank=chosen.rank,
            vision_floor=chosen.vision_floor,
            curriculum=chosen.curriculum,
            modalities=chosen.modalities,
        )

    def hosts(self, task: str) -> list[Site]:
        """The sites of a task's expert: those of its allocation, else of the budget, else all of the chosen modalities."""
        by_name = {site.name: site for site in self.sites}
        return [by_name[name] for name in self._host_names(task) if name in by_name]

    def _host_names(self, task: str) -> Sequence[str]:
        chosen = self.settings.allocate
        path = self.run.allocation(task)
        if path.exists():
            document, made = read_allocation(path)
            if made.backbone == self.model.fingerprint and int(document["rank"]) == chosen.rank:
                return list(document["sites"])
        try:
            return self.placed(chosen.budget).chosen
        except DmoleError:  # reported beside the budget; the plan is made for the largest expert
            return [site.name for site in self.sites if site.modality in chosen.modalities]

    def new_expert(self, task: str, *, device: Callable[[str], torch.device]) -> Expert:
        """An untrained expert of a task; `device` gives that of a site."""
        chosen = self.settings.allocate
        shapes = {site.name: (chosen.rank, site.in_features, site.out_features) for site in self.hosts(task)}
        generator = torch.Generator().manual_seed(0)
        return new_expert(shapes, scale=chosen.alpha / chosen.rank, generator=generator, device=device)
