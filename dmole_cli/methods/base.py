"""What a method is: a module of functions, each with a default; the training loop, the evaluation and the artifacts are shared.

A method's file links its paper and defines what differs from these defaults, and nothing else:

- `PAPER`: a link (the one thing without a default);
- `OPTIONS = {}`: its own hyper-parameters with their defaults, numbers from 0 up; read them as `stage.options[name]`;
- `RULES = {}`: option -> (what holds for a possible value, the same in words), where 0 or more does not say it all;
- `USES_ROUTERS = False`: whether `active` looks at reconstruction losses;
- `ALLOCATES = False`: whether `dmole allocate` places its experts; `allocation(settings)` then says with which settings;
- `MERGES = False`: whether active experts are folded into the backbone's weights instead of computed beside them;
- `stages(tasks)`: the tasks at which something trains (all);
- `data(tasks, task, options)`: task -> share of its training split that trains at this stage (`{task: 1.0}`);
- `start(tasks, task)`: the earlier task whose expert is trained on, None for a fresh one (None);
- `place(stage)`: site -> rank of a fresh expert (every candidate site, at the highest rank that fits the budget);
- `scale(stage)`: alpha / rank (the configuration's);
- `fresh(stage, generator)`: the fresh expert itself, where sites and ranks do not say it all;
- `needs(stage)`: artifacts that training reads, beside the expert of `start` (none);
- `settings(config)`: what of the configuration shapes the result beside recipe and options (budget, sites, scale);
- `joins(stage)`: earlier tasks whose experts are active, frozen, for each training sample (none);
- `penalty(stage, training)`: None, or a function of a `Step` that gives what is added to its loss (None);
- `remember(stage, training)`: named tensors that the next task's training finds in `training.memory` (none);
- `cells(tasks, unseen)`: (stage, task) pairs to evaluate (all of them);
- `active(routing)`: tasks whose experts are active for each test sample (the last one's).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch

from dmole_cli import catalog
from dmole_cli.artifacts.run import Run
from dmole_cli.data.sample import Sample
from dmole_cli.errors import DmoleError
from dmole_cli.experts.expert import Expert, new_expert
from dmole_cli.experts.routed import RoutedExperts
from dmole_cli.settings.model import AllocateSettings, Config
from dmole_cli.training.loop import Penalty, Step

if TYPE_CHECKING:
    from dmole_cli.backbones.backbone import Backbone

__all__ = ["Penalty", "Step"]

Cell = tuple[int, str]
Options = Mapping[str, float]
Rule = tuple[Callable[[float], bool], str]
FROM_ZERO: Rule = (lambda v: 0 <= v < math.inf, "0 or more")


@dataclass(frozen=True)
class Stage:
    """What a method may look at when a task is about to train.

    Attributes:
        method: the method itself.
        run: the run directory.
        config: the settings.
        options: the method's own, complete.
        task: the task that trains.
    """

    method: Method
    run: Run
    config: Config
    options: Options
    task: str

    @property
    def earlier(self) -> tuple[str, ...]:
        """Tasks that arrived before this one."""
        return self.config.earlier(self.task)


@dataclass(frozen=True)
class LoadedStage(Stage):
    """A stage whose data and backbone are at hand.

    Attributes:
        samples: what trains, after `data`.
        backbone: the frozen model.
    """

    samples: Sequence[Sample]
    backbone: Backbone


@dataclass(frozen=True)
class Training:
    """What a method may look at while a task trains.

    Attributes:
        routed: the experts attached to the backbone.
        expert: the one that trains.
        memory: what the method remembered after the task of `start`; empty at the first.
    """

    routed: RoutedExperts
    expert: Expert
    memory: Mapping[str, torch.Tensor]


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


def every_task(tasks: Sequence[str]) -> list[str]:
    """Something trains at every task."""
    return list(tasks)


def own_data(tasks: Sequence[str], task: str, options: Options) -> dict[str, float]:
    """The task's own training split, all of it."""
    return {task: 1.0}


def afresh(tasks: Sequence[str], task: str) -> str | None:
    """Every task starts with a fresh expert."""
    return None


def task_before(tasks: Sequence[str], task: str) -> str | None:
    """The expert of the task before is trained on."""
    position = list(tasks).index(task)
    return tasks[position - 1] if position else None


def uniform_placement(stage: LoadedStage) -> dict[str, int]:
    """Experts on every candidate site, at the highest rank whose parameters still fit the budget."""
    from dmole_cli.allocation.placement import spread_rank

    sites, parameters = candidate_sites(stage)
    rank = spread_rank([(site.in_features, site.out_features) for site in sites], budget_parameters=parameters)
    return {site.name: rank for site in sites}


def candidate_sites(stage: LoadedStage) -> tuple[list[Any], int]:
    """The candidate sites of the backbone, and how many parameters the budget allows on them."""
    from dmole_cli.allocation.placement import budget_total
    from dmole_cli.settings.budget import parse_budget
    from dmole_cli.backbones.sites import find_sites

    settings = stage.config.allocate
    sites, budget = find_sites(stage.backbone.model, stage.config.profile.sites), parse_budget(settings.budget)
    if budget.form == "sites":
        # Half of the sites at the full rank is, on the average site, all of them at half of it.
        return sites, int(budget.amount * sum(site.expert_parameters(settings.rank) for site in sites))
    return sites, budget_total(budget, sites=len(sites), backbone_parameters=stage.backbone.parameters)


def configured_scale(stage: Stage) -> float:
    """The configuration's alpha over the configuration's rank, whatever rank the budget leaves."""
    return stage.config.allocate.alpha / stage.config.allocate.rank


def placed_expert(stage: LoadedStage, generator: torch.Generator) -> Expert:
    """A fresh LoRA expert where `place` puts one."""
    shapes = {}
    for site, rank in stage.method.place(stage).items():
        try:
            module: Any = stage.backbone.model.get_submodule(site)
        except AttributeError as error:
            raise DmoleError(
                f"the backbone has no module '{site}'",
                f"make the allocation again: dmole allocate --task {stage.task} --force",
            ) from error
        shapes[site] = (rank, module.in_features, module.out_features)
    return new_expert(shapes, scale=stage.method.scale(stage), generator=generator, device=stage.backbone.device)


def needs_nothing(stage: Stage) -> list[Path]:
    """Training reads no artifact but the expert that it starts from."""
    return []


def placement_settings(config: Config) -> dict[str, Any]:
    """What shapes a uniform placement; the rank only where the budget is a share of the sites at that rank."""
    from dmole_cli.settings.budget import parse_budget

    settings = config.allocate
    rank = {"rank": settings.rank} if parse_budget(settings.budget).form == "sites" else {}
    return {
        "budget": settings.budget,
        "sites": config.profile.sites,
        "scale": settings.alpha / settings.rank,
        **rank,
    }


def nothing_joins(stage: LoadedStage) -> list[tuple[str, ...]]:
    """No earlier expert is active while a task trains."""
    return [() for _ in stage.samples]


def all_join(stage: LoadedStage) -> list[tuple[str, ...]]:
    """All earlier experts are active, frozen, while a task trains."""
    return [stage.earlier for _ in stage.samples]


def needs_earlier(stage: Stage) -> list[Path]:
    """The method's experts of all earlier tasks."""
    return [stage.run.expert(task, stage.method.name) for task in stage.earlier]


def no_penalty(stage: LoadedStage, training: Training) -> Penalty | None:
    """Nothing but the loss on the answers."""
    return None


def nothing_remembered(stage: LoadedStage, training: Training) -> dict[str, torch.Tensor]:
    """The expert is all that the next task finds."""
    return {}


def every_cell(tasks: Sequence[str], unseen: Sequence[str]) -> list[Cell]:
    """All stages, the pretrained backbone's included, times all tasks, the unseen ones too."""
    return [(stage, task) for task in (*tasks, *unseen) for stage in range(len(tasks) + 1)]


def last_expert(routing: Routing) -> list[tuple[str, ...]]:
    """The expert as it stands after the last trained task, for every sample."""
    return [tuple(routing.tasks[-1:]) for _ in routing.losses]


def all_experts(routing: Routing) -> list[tuple[str, ...]]:
    """The experts of all tasks trained so far, for every sample."""
    return [tuple(routing.tasks) for _ in routing.losses]


def as_configured(settings: AllocateSettings) -> AllocateSettings:
    """Placement as the configuration has it."""
    return settings


@dataclass(frozen=True)
class Method:
    """A file of `methods/` with the defaults filled in; see the top of this module for each field."""

    name: str
    PAPER: str
    OPTIONS: Mapping[str, float] = field(default_factory=dict)
    RULES: Mapping[str, Rule] = field(default_factory=dict)
    USES_ROUTERS: bool = False
    ALLOCATES: bool = False
    MERGES: bool = False
    allocation: Callable[[AllocateSettings], AllocateSettings] = as_configured
    stages: Callable[[Sequence[str]], list[str]] = every_task
    data: Callable[[Sequence[str], str, Options], dict[str, float]] = own_data
    start: Callable[[Sequence[str], str], str | None] = afresh
    place: Callable[[LoadedStage], dict[str, int]] = uniform_placement
    scale: Callable[[Stage], float] = configured_scale
    fresh: Callable[[LoadedStage, torch.Generator], Expert] = placed_expert
    needs: Callable[[Stage], list[Path]] = needs_nothing
    settings: Callable[[Config], dict[str, Any]] = placement_settings
    joins: Callable[[LoadedStage], list[tuple[str, ...]]] = nothing_joins
    penalty: Callable[[LoadedStage, Training], Penalty | None] = no_penalty
    remember: Callable[[LoadedStage, Training], dict[str, torch.Tensor]] = nothing_remembered
    cells: Callable[[Sequence[str], Sequence[str]], list[Cell]] = every_cell
    active: Callable[[Routing], list[tuple[str, ...]]] = last_expert

    @property
    def remembers(self) -> bool:
        """Whether its training leaves more than an expert."""
        return self.remember is not nothing_remembered

    def options(self, config: Config) -> dict[str, float]:
        """Its own options: the defaults, and the configuration's `[method.<name>]` over them.

        `learning_rate` is an option of every method: 0 stands for the task card's.

        Raises:
            DmoleError: the configuration names an option that it does not have, or gives one a value that cannot be.
        """
        known = {"learning_rate": 0.0, **self.OPTIONS}
        given = config.method.get(self.name, {})
        if unknown := sorted(set(given) - set(known)):
            message = f"method {self.name} has no option {', '.join(unknown)}"
            raise DmoleError(message, f"it has: {', '.join(known)}")
        options = {**known, **given}
        rules = {name: self.RULES.get(name, FROM_ZERO) for name in options}
        if wrong := [
            name for name, (holds, _) in rules.items() if not (FROM_ZERO[0](options[name]) and holds(options[name]))
        ]:
            said = "; ".join(f"{name} is {options[name]:g}, and must be {rules[name][1]}" for name in wrong)
            raise DmoleError(f"method {self.name}: {said}", f"mend it in --set or in [method.{self.name}]")
        return options


def load_method(name: str) -> Method:
    """Read a file of `methods/`.

    Raises:
        DmoleError: there is no such file, it links no paper, or it defines a function or a constant that no method has.
    """
    module = catalog.load("methods", name)
    known = {f.name for f in fields(Method)} - {"name"}
    if wrong := sorted(key for key in _defined(module) if key not in known and not key.startswith("_")):
        message = f"methods/{Path(str(module.__file__)).name} defines {', '.join(wrong)}, which no method has"
        raise DmoleError(message, f"a method has: {', '.join(sorted(known))}; name helpers with a leading _")
    if not hasattr(module, "PAPER"):
        raise DmoleError(f"methods/{Path(str(module.__file__)).name} has no PAPER", "link the paper of the method")
    return Method(name=name, **{key: getattr(module, key) for key in known if hasattr(module, key)})


def _defined(module: ModuleType) -> list[str]:
    """Names of the functions that a module itself defines, and of its constants, which are in capitals."""
    return [
        key
        for key, value in vars(module).items()
        if (inspect.isfunction(value) and value.__module__ == module.__name__)
        or (key.isupper() and not inspect.ismodule(value))
    ]
