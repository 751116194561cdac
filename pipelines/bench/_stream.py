"""The embedded backbone and the built-in stream: samples, and the stages of a run on them.

Settings and calls of stages are used in this file only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dmole_cli.artifacts.allocation import read_allocation
from dmole_cli.artifacts.costs import read_cost
from dmole_cli.artifacts.evaluation import Answer, read_evaluation
from dmole_cli.artifacts.expert import ExpertFile, read_expert
from dmole_cli.artifacts.kinds import D_MOLE
from dmole_cli.artifacts.labels import labelled
from dmole_cli.artifacts.outcome import Outcome
from dmole_cli.artifacts.router import RouterFile, read_router
from dmole_cli.artifacts.run import Run
from dmole_cli.backbones.backbone import Backbone
from dmole_cli.backbones.loading import load_backbone
from dmole_cli.backbones.sites import find_sites
from dmole_cli.cli.workspace import workspace
from dmole_cli.data.card import load_card
from dmole_cli.data.loading import samples
from dmole_cli.data.sample import Sample
from dmole_cli.experts.expert import Expert
from dmole_cli.settings.model import DEFAULT_TASKS, DEFAULT_UNSEEN, RouterSettings, Settings, TrainSettings
from dmole_cli.stages import allocate, evaluate, profile, train_router, train_task
from pipelines.bench._models import random_expert

TASKS, UNSEEN = DEFAULT_TASKS, DEFAULT_UNSEEN
TRAIN_SETTINGS = TrainSettings()


def embedded() -> Backbone:
    """The backbone that comes with the package."""
    return load_backbone("embedded")


def some_samples(task: str, split: str, count: int) -> Sequence[Sample]:
    """The first samples of a split.

    Raises:
        DmoleError: the packages of the stream are not installed; its hint says how to install them.
    """
    return samples(load_card(task), split)[:count]


def slight_expert(backbone: Backbone, *, seed: int) -> Expert:
    """An expert on all attention projections that changes answers only slightly."""
    expert = random_expert(backbone.model, [s.name for s in find_sites(backbone.model, "attention")], seed=seed)
    return Expert({site: (a, 0.2 * b) for site, (a, b) in expert.sites.items()}, expert.scale)


class StreamRun:
    """A run of D-MoLE on the embedded backbone.

    Args:
        folder: the run directory.
        tasks: names or card paths of the stream's tasks.
        unseen: those of tasks that never train.
        quick: whether routers train for fewer epochs, and experts on smaller batches, than by default.
    """

    def __init__(
        self, folder: Path, *, tasks: Sequence[str] = TASKS, unseen: Sequence[str] = UNSEEN, quick: bool = False
    ) -> None:
        changed: dict[str, Any] = {}
        if quick:
            changed = {"router": RouterSettings(epochs=200), "train": TrainSettings(batch_size=16)}
        self.work = workspace(Settings(tasks=tuple(tasks), unseen=tuple(unseen), **changed), Run(folder))
        self.run = self.work.run

    @property
    def settings(self) -> Settings:
        """The settings of the run."""
        return self.work.settings

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the stream's tasks, in order."""
        return self.settings.tasks

    @property
    def unseen(self) -> tuple[str, ...]:
        """Names of the tasks that never train."""
        return self.settings.unseen

    @property
    def backbone(self) -> Backbone:
        """The loaded backbone."""
        return self.work.model.load()

    def card(self, task: str) -> Any:
        """The card of a task."""
        return self.work.data.card(task)

    def samples(self, task: str, split: str) -> Sequence[Sample]:
        """A split of a task."""
        return self.work.data.samples(task, split)

    def profile(self, task: str, *, force: bool = False) -> Outcome:
        """Run the stage `profile`."""
        return profile.profile(task, **self.work.parts, force=force)

    def allocate(self, task: str) -> Outcome:
        """Run the stage `allocate`."""
        return allocate.allocate_task(task, **self.work.parts)

    def train_router(self, task: str) -> Outcome:
        """Run the stage `train-router`."""
        return train_router.train_router(task, **self.work.parts)

    def train_task(self, task: str) -> Outcome:
        """Run the stage `train-task`."""
        return train_task.train_task(task, **self.work.parts)

    def evaluate(self, *, force: bool = False) -> None:
        """Run the stage `evaluate` for the whole score matrix."""
        evaluate.evaluate(**self.work.parts, force=force)

    def train(self) -> None:
        """Run all stages before `evaluate` for all tasks."""
        stages: list[Callable[[str], Outcome]] = [self.profile, self.allocate, self.train_router, self.train_task]
        for stage in stages:
            for task in self.tasks:
                stage(task)

    def allocation(self, task: str) -> dict[str, Any]:
        """The document that `allocate` has written."""
        return read_allocation(self.run.allocation(task))[0]

    def router(self, task: str) -> RouterFile:
        """The router that `train-router` has written."""
        return read_router(self.run.router(task))

    def expert(self, task: str) -> ExpertFile:
        """The expert that `train-task` has written."""
        return read_expert(self.run.expert(task))

    def answers(self, stage: int, task: str) -> list[Answer]:
        """The answers after `stage` tasks that `evaluate` has written."""
        return read_evaluation(self.run.evaluation(self._label, stage, task))[0]

    def generations(self) -> dict[str, int]:
        """Task -> number of answers that `evaluate` generated, as it counted them."""
        costs = {
            task: read_cost(self.run.cost(f"evaluate-{self._label}", task)) for task in (*self.tasks, *self.unseen)
        }
        return {task: cost["counts"]["generations"] for task, cost in costs.items()}

    @property
    def _label(self) -> str:
        return labelled(D_MOLE, self.settings.evaluate)
