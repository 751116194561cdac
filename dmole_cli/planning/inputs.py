"""What a plan depends on, and where it assumes the experts of a task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from dmole_cli.allocation.by_settings import place_sites
from dmole_cli.allocation.placement import Placement, SiteScore
from dmole_cli.artifacts.allocation import ranks_of, read_allocation
from dmole_cli.artifacts.run import Run
from dmole_cli.backbones.lazy_model import LazyModel
from dmole_cli.backbones.sites import Site
from dmole_cli.data.tasks import Tasks
from dmole_cli.errors import DmoleError
from dmole_cli.experts.expert import Expert, new_expert
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
        sites = [SiteScore(s.name, s.modality, s.expert_parameters(1), 1.0) for s in self.sites]
        # Spectra are unknown, too, so ranks are planned by the other utility.
        planned = chosen.updated(budget=budget, utility="log")
        return place_sites(sites, planned, backbone_parameters=self.parameters)

    def shapes(self, task: str) -> dict[str, tuple[int, int, int]]:
        """Site -> (rank, inputs, outputs) of a task's expert.

        The sites are those of its allocation if that was made with these settings, else of the budget, else all of the chosen
        modalities.
        """
        ranks = self._ranks(task)
        return {s.name: (ranks[s.name], s.in_features, s.out_features) for s in self.sites if s.name in ranks}

    def _ranks(self, task: str) -> Mapping[str, int]:
        chosen = self.settings.allocate
        path = self.run.allocation(task)
        if path.exists():
            document, made = read_allocation(path)
            own = {**chosen.for_header(), "modalities": list(chosen.modalities)}
            if made.backbone == self.model.fingerprint and made.settings == own:
                return ranks_of(document)
        try:
            return self.placed(chosen.budget).ranks
        except DmoleError:  # reported beside the budget; the plan is made for the largest expert
            return {site.name: chosen.reference_rank for site in self.sites if site.modality in chosen.modalities}

    def new_expert(self, task: str, *, device: Callable[[str], torch.device]) -> Expert:
        """An untrained expert of a task; `device` gives that of a site."""
        generator = torch.Generator().manual_seed(0)
        scale = self.settings.allocate.scale
        return new_expert(self.shapes(task), scale=scale, generator=generator, device=device)
