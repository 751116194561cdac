"""What a method is: a module of functions; the training loop, the evaluation and the artifacts are shared.

A method's file defines

- `PAPER`: a link;
- `place(stage) -> dict[str, int]`: the sites that get a trainable expert of this task, with its rank;
- `scale(stage) -> float`: alpha / rank, what these experts' products are multiplied with;
- `needs(run, tasks, task) -> list[Path]`: the artifacts that training reads, beside the expert of `start`;
- `settings(config) -> dict`: what of the configuration shapes the result, beside the training recipe;
- `start(tasks, task) -> str | None`: the earlier task whose expert is trained on, None for a fresh one;
- `joins(stage) -> list[tuple[str, ...]]`: earlier experts that are active, frozen, for each training sample;
- `cells(tasks, unseen) -> list[(stage, task)]`: what is evaluated;
- `active(routing) -> list[tuple[str, ...]]`: tasks whose experts are active for each test sample;
- `USES_ROUTERS`: whether `active` looks at reconstruction losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dmole_cli.artifacts.layout import Run
from dmole_cli.config import Config
from dmole_cli.sample import Sample

if TYPE_CHECKING:
    from dmole_cli.backbones.adapter import Backbone

Cell = tuple[int, str]


@dataclass(frozen=True)
class Stage:
    """What a method may look at while a task trains.

    Attributes:
        run: the run directory.
        config: the settings.
        task: the task that trains.
        samples: its training split.
        backbone: the frozen model.
    """

    run: Run
    config: Config
    task: str
    samples: Sequence[Sample]
    backbone: Backbone


@dataclass(frozen=True)
class Routing:
    """What a method may look at when it decides which experts answer.

    Attributes:
        tasks: those trained so far, in stream order.
        task: the one that the samples belong to; only a diagnosis may look at it.
        losses: reconstruction error per sample and router of `tasks` [sample][router]; empty rows without routers.
        thresholds: of those routers.
        mode: the routing asked for.
        batch_size: of the evaluation, for the mode that votes.
    """

    tasks: Sequence[str]
    task: str
    losses: Sequence[Sequence[float]]
    thresholds: Sequence[float]
    mode: str
    batch_size: int


class Method(Protocol):
    """A module of `methods/`."""

    PAPER: str
    USES_ROUTERS: bool

    def place(self, stage: Stage) -> dict[str, int]: ...
    def scale(self, stage: Stage) -> float: ...
    def needs(self, run: Run, tasks: Sequence[str], task: str) -> list[Path]: ...
    def settings(self, config: Config) -> dict[str, Any]: ...
    def start(self, tasks: Sequence[str], task: str) -> str | None: ...
    def joins(self, stage: Stage) -> list[tuple[str, ...]]: ...
    def cells(self, tasks: Sequence[str], unseen: Sequence[str]) -> list[Cell]: ...
    def active(self, routing: Routing) -> list[tuple[str, ...]]: ...


def every_cell(tasks: Sequence[str], unseen: Sequence[str]) -> list[Cell]:
    """All stages, the pretrained backbone's included, times all tasks, the unseen ones too."""
    return [(stage, task) for task in (*tasks, *unseen) for stage in range(len(tasks) + 1)]


def nothing_joins(stage: Stage) -> list[tuple[str, ...]]:
    """No earlier expert is active while a task trains."""
    return [() for _ in stage.samples]


def needs_nothing(run: Run, tasks: Sequence[str], task: str) -> list[Path]:
    """Training reads no artifact but the expert that it starts from."""
    return []


def uniform_placement(stage: Stage) -> dict[str, int]:
    """Experts on every candidate site, at the highest rank whose parameters still fit the budget."""
    from dmole_cli.backbones.sites import find_sites
    from dmole_cli.placement import budget_total, parse_budget, spread_rank

    sites = find_sites(stage.backbone.model, stage.config.profile.sites)
    budget = parse_budget(stage.config.allocate.budget)
    shapes = [(site.in_features, site.out_features) for site in sites]
    if budget.form == "sites":
        # Half of the sites at the full rank is, on the average site, all of them at half of it.
        parameters = int(budget.amount * sum(site.expert_parameters(stage.config.allocate.rank) for site in sites))
    else:
        parameters = budget_total(budget, sites=len(sites), backbone_parameters=stage.backbone.parameters)
    rank = spread_rank(shapes, budget_parameters=parameters)
    return {site.name: rank for site in sites}


def configured_scale(stage: Stage) -> float:
    """The configuration's alpha over the configuration's rank, whatever rank the budget leaves."""
    return stage.config.allocate.alpha / stage.config.allocate.rank


def placement_settings(config: Config) -> dict[str, Any]:
    """What shapes a uniform placement."""
    return {
        "budget": config.allocate.budget,
        "sites": config.profile.sites,
        "scale": config.allocate.alpha / config.allocate.rank,
    }
