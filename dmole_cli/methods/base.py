"""The base class of all methods: what a continual-learning method may decide, with the default for each decision.

A file of `methods/` defines one subclass of `Method` that overrides what the method does differently; the training loop, the
evaluation and the artifacts are shared. The file's name is the method's name, underscores typed as hyphens. Files import torch
inside functions only, because reports load a method to read its attributes.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

from dmole_cli import catalog
from dmole_cli.allocation.placement import spread_rank
from dmole_cli.artifacts.errors import StaleArtifact
from dmole_cli.artifacts.run import Run
from dmole_cli.data.sample import Sample
from dmole_cli.errors import DmoleError
from dmole_cli.methods._option import Option as Option
from dmole_cli.methods._same_budget import uniform_budget
from dmole_cli.settings.budget import parse_budget

if TYPE_CHECKING:
    import torch

    from dmole_cli.backbones.backbone import Backbone
    from dmole_cli.backbones.sites import Site
    from dmole_cli.data.card import TaskCard
    from dmole_cli.experts.expert import Expert
    from dmole_cli.experts.routed import RoutedExperts
    from dmole_cli.experts.weighting import Weighting
    from dmole_cli.settings.model import AllocateSettings, Settings
    from dmole_cli.training.loop import Penalty

# (stage, task) of an entry R[stage, task] of the score matrix.
Entry = tuple[int, str]
# How a method walks through the stream, and with it which entries its evaluations have:
# "sequential": one task after the other, evaluated after each of them; "zero-shot": nothing trains, stage 0 only;
# "per-task": each task alone from the pretrained backbone; "joint": all tasks together, the last stage only.
PROTOCOLS = ("zero-shot", "per-task", "joint", "sequential")


# Options of every method.
COMMON_OPTIONS: Mapping[str, Option] = {"learning_rate": Option(0.0, "Peak learning rate; 0 takes the task card's.")}


@dataclass(frozen=True)
class TaskContext:
    """A task that is about to train.

    Attributes:
        method: the method.
        run: the run directory.
        settings: of the run.
        options: values of the method's options, by name.
        task: the task that trains.
    """

    method: Method
    run: Run
    settings: Settings
    options: Mapping[str, float]
    task: str

    @property
    def earlier(self) -> tuple[str, ...]:
        """Tasks that come before this one in the stream."""
        return self.settings.earlier(self.task)


@dataclass(frozen=True)
class LoadedContext(TaskContext):
    """A task that is about to train, with its samples and the backbone.

    Attributes:
        samples: the training samples, chosen by `Method.data_shares`.
        backbone: the frozen model.
    """

    samples: Sequence[Sample]
    backbone: Backbone


@dataclass(frozen=True)
class Training:
    """The tensors of a training in progress.

    Attributes:
        routed: the experts attached to the backbone.
        expert: the one that trains.
        memory: what `Method.remember` returned after the previous task; empty at the first task.
    """

    routed: RoutedExperts
    expert: Expert
    memory: Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Routing:
    """The test samples whose active experts a method chooses.

    Attributes:
        tasks: those trained so far, in the order of the stream.
        task: the task of the samples; for diagnoses only (`--routing oracle`), and for methods with the "per-task" protocol.
        losses: reconstruction error of each sample under each router of `tasks` [samples][routers]; empty rows without routers.
        thresholds: of those routers [routers].
        mode: the routing mode (`--routing`).
        batch_size: of the evaluation, for the mode in which a batch votes.
    """

    tasks: Sequence[str]
    task: str
    losses: Sequence[Sequence[float]]
    thresholds: Sequence[float]
    mode: str
    batch_size: int


class Method:
    """A continual-learning method; its attributes and methods are the defaults of all files of `methods/`.

    Attributes:
        name: the file's name, set by `load_method`.
        paper: a link to the paper; required.
        options: the method's own hyper-parameters by name, beside `COMMON_OPTIONS`.
        uses_routers: `active_experts` reads the routers' reconstruction errors.
        uses_allocation: `dmole allocate` places its experts.
        uses_profile: training itself reads a task's profile.
        uses: settings of `[train]` that not every method uses and this one does; typed for another method, they are refused.
        shaping: options that shape a new expert, and cannot change while it is trained further.
        merges: active experts are merged into the backbone's weights instead of computed beside them.
        continues: the previous task's expert is trained further; otherwise every task starts with a new one.
        has_memory: `remember` returns tensors, which are stored for the next task's training, or for `weighting`.
        weighted: active experts are weighted for each sample by `weighting`, from what `remember` stored of each task.
        protocol: one of `PROTOCOLS`.
        is_main: D-MoLE itself: listed last in reports, and its artifacts have no folder of their own.
    """

    name: str = ""
    paper: ClassVar[str] = ""
    options: ClassVar[Mapping[str, Option]] = {}
    uses_routers: ClassVar[bool] = False
    uses_allocation: ClassVar[bool] = False
    uses_profile: ClassVar[bool] = False
    uses: ClassVar[frozenset[str]] = frozenset()
    shaping: ClassVar[tuple[str, ...]] = ()
    merges: ClassVar[bool] = False
    continues: ClassVar[bool] = False
    has_memory: ClassVar[bool] = False
    weighted: ClassVar[bool] = False
    protocol: ClassVar[str] = "sequential"
    is_main: ClassVar[bool] = False

    def option_values(self, settings: Settings) -> dict[str, float]:
        """The value of every option: the settings' where given, else the default.

        Raises:
            DmoleError: the settings name an unknown option of the method, or a value is out of its bounds.
        """
        known = {**COMMON_OPTIONS, **self.options}
        given = settings.method.get(self.name, {})
        if unknown := sorted(set(given) - set(known)):
            message = f"method {self.name} has no option {', '.join(unknown)}"
            raise DmoleError(message, f"it has: {', '.join(known)}")
        values = {name: option.default for name, option in known.items()} | dict(given)
        if wrong := [name for name, option in known.items() if not option.accepts(values[name])]:
            problems = "; ".join(f"{name} is {values[name]:g}, and must be {known[name].bounds}" for name in wrong)
            raise DmoleError(f"method {self.name}: {problems}", f"correct --set or [method.{self.name}]")
        return values

    def allocation_settings(self, settings: AllocateSettings) -> AllocateSettings:
        """The settings that `dmole allocate` places the method's experts with: the configured ones."""
        return settings

    def trained_tasks(self, tasks: Sequence[str]) -> list[str]:
        """The tasks of the stream after which something trains: all of them."""
        return list(tasks)

    def data_shares(self, tasks: Sequence[str], task: str, options: Mapping[str, float]) -> dict[str, float]:
        """Task -> share (0..1) of its training split that trains at `task`: the task's own split."""
        return {task: 1.0}

    def training_samples(self, context: TaskContext, samples: Sequence[Sample], card: TaskCard) -> Sequence[Sample]:
        """The samples that train: those of `data_shares` as they are; as many of them, each with the same images.

        Args:
            context: of the task that trains.
            samples: those of `data_shares`.
            card: of the task, by which its training split is read.
        """
        return samples

    def previous_task(self, tasks: Sequence[str], task: str) -> str | None:
        """The task whose expert and memory the training of `task` starts from; None for a new expert."""
        position = list(tasks).index(task)
        return tasks[position - 1] if self.continues and position else None

    def placement(self, context: LoadedContext) -> dict[str, int]:
        """Site -> rank of a new expert: every candidate site, at the highest rank whose parameters fit the budget."""
        sites, parameters = candidate_sites(context)
        rank = spread_rank([(site.in_features, site.out_features) for site in sites], budget_parameters=parameters)
        return {site.name: rank for site in sites}

    def scale(self, context: TaskContext) -> float:
        """alpha / rank of a new expert: that of the settings, whatever rank the budget leaves."""
        return context.settings.allocate.scale

    def new_expert(self, context: LoadedContext, generator: torch.Generator) -> Expert:
        """A new LoRA expert at the sites and ranks of `placement`.

        Raises:
            DmoleError: the backbone has no such site.
        """
        from dmole_cli.experts.expert import new_expert

        shapes = {}
        for site, rank in self.placement(context).items():
            try:
                module: Any = context.backbone.model.get_submodule(site)
            except AttributeError as error:
                allocation = context.run.allocation(context.task, self.name)
                raise StaleArtifact(allocation, f"the backbone has no module '{site}'") from error
            shapes[site] = (rank, module.in_features, module.out_features)
        return new_expert(shapes, scale=self.scale(context), generator=generator, device=context.backbone.device_of)

    def inputs(self, context: TaskContext) -> list[Path]:
        """Artifacts that training reads, beside expert and memory of `previous_task`: none."""
        return []

    def header_settings(self, settings: Settings) -> dict[str, Any]:
        """The settings that shape the expert, beside recipe and options, for its header: those of a uniform placement."""
        allocate = settings.allocate
        # Uniform placement depends on the rank only where the budget is a share of the sites at that rank.
        rank = {"rank": allocate.reference_rank} if parse_budget(allocate.budget).form == "sites" else {}
        return {"budget": allocate.budget, "sites": settings.profile.sites, "scale": allocate.scale, **rank}

    def transfer_experts(self, context: LoadedContext) -> list[tuple[str, ...]]:
        """Earlier tasks whose experts are active, frozen, in training, for each sample: none."""
        return [()] * len(context.samples)

    def voted_experts(self, context: LoadedContext, batches: Sequence[Sequence[int]]) -> list[tuple[str, ...]]:
        """Earlier tasks whose experts are active, frozen, for all samples of a training batch, for each batch: none.

        Args:
            context: of the task that trains.
            batches: indices of the samples of each step.
        """
        return [()] * len(batches)

    def penalty(self, context: LoadedContext, training: Training) -> Penalty | None:
        """A function from a `training.loop.Step` to a term that is added to its loss (scalar): None, no such term."""
        return None

    def remember(self, context: LoadedContext, training: Training) -> dict[str, torch.Tensor]:
        """Named tensors for `Training.memory` of the next task, computed after training; used where `has_memory`.

        Where experts are `weighted`, the routing features of the task's samples are there (`run.features(task)`).
        """
        return {}

    def weighting(self, run: Run, tasks: Sequence[str]) -> Weighting | None:
        """How the experts of the tasks trained so far are weighted for each test sample: None, all active ones count alike."""
        return None

    def entries(self, tasks: Sequence[str], unseen: Sequence[str]) -> list[Entry]:
        """Entries of the score matrix to evaluate: all stages, 0 (the pretrained backbone) included, times all tasks."""
        return [(stage, task) for task in (*tasks, *unseen) for stage in range(len(tasks) + 1)]

    def learned(self, tasks: Sequence[str], stage: int, task: str) -> list[str]:
        """The tasks that an entry's model has been trained on, in their order: those of the first `stage` steps.

        Every evaluation records them, and a report uses no evaluation of another stream. With the "per-task" protocol it is
        the entry's own task alone.
        """
        if self.protocol == "per-task":
            return [task] if stage else []
        return list(tasks[:stage])

    def active_experts(self, routing: Routing) -> list[tuple[str, ...]]:
        """Tasks whose experts are active, for each test sample: the last trained task."""
        return [tuple(routing.tasks[-1:]) for _ in routing.losses]


def candidate_sites(context: LoadedContext) -> tuple[list[Site], int]:
    """The candidate sites of the backbone, and the number of parameters that the budget allows on all of them.

    Raises:
        DmoleError: D-MoLE's allocation of the task has other candidate sites, another scale, or at the same budget another number
            of parameters.
    """
    run, task = context.run, context.task
    return uniform_budget(
        context.backbone,
        context.settings,
        method=context.method.name,
        allocation=run.allocation(task),
        profile=run.profile(task),
    )


def load_method(name: str) -> Method:
    """Instantiate the method that a file of `methods/` defines.

    Raises:
        DmoleError: there is no such file, or it does not define one valid subclass of `Method`.
    """
    module = catalog.load("methods", name)
    file = f"methods/{Path(str(module.__file__)).name}"
    classes = _public_methods(module)
    if len(classes) != 1:
        message = f"{file} must define exactly one public subclass of Method, not {len(classes)}"
        raise DmoleError(message, "see methods/base.py; start the names of helper classes with an underscore")
    (kind,) = classes
    known = {key for key in dir(Method) if not key.startswith("_")}
    own = {key for base in kind.__mro__ if base not in Method.__mro__ for key in vars(base) if not key.startswith("_")}
    if unknown := sorted(own - known):
        hint = f"a method has: {', '.join(sorted(known))}; start the names of helpers with an underscore"
        raise DmoleError(f"{file} defines {', '.join(unknown)}, which Method does not have", hint)
    if not kind.paper:
        raise DmoleError(f"{file} has no paper", "set `paper` to a link to the paper of the method")
    if kind.has_memory != (kind.remember is not Method.remember):
        raise DmoleError(f"{file}: `has_memory` and `remember` do not agree", "define both of them, or neither")
    if kind.weighted != (kind.weighting is not Method.weighting) or (kind.weighted and not kind.has_memory):
        raise DmoleError(
            f"{file}: `weighted` and `weighting` do not agree", "define both of them and `remember`, or neither"
        )
    if kind.protocol not in PROTOCOLS:
        raise DmoleError(f"{file}: unknown protocol '{kind.protocol}'", f"choose one of: {', '.join(PROTOCOLS)}")
    method = kind()
    method.name = name
    return method


def _public_methods(module: ModuleType) -> list[type[Method]]:
    """The public subclasses of `Method` that a module itself defines."""
    return [
        value
        for key, value in vars(module).items()
        if inspect.isclass(value)
        and issubclass(value, Method)
        and value.__module__ == module.__name__
        and not key.startswith("_")
    ]
