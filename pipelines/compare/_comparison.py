"""What the experiments of a comparison have in common: their steps, the order of the steps, and the folders they lie in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _files import toml, write_lines
from _plan import MAIN, Experiment, order_of
from _steps import Step, code_of, locked, source_of

from dmole_cli.artifacts.run import Run
from dmole_cli.data.card import task_name
from dmole_cli.errors import DmoleError
from dmole_cli.settings.model import DEFAULT_TASKS

# Settings that shape profiles, features and routers, beside the tasks.
SHARED_SETTINGS = ("backbone", "data_root", "profile", "router")
# Costs that `dmole evaluate` writes: of predictions and of likelihoods.
WORK = ("evaluate", "likelihood")


@dataclass
class Comparison:
    """A folder of experiments.

    Attributes:
        folder: of the comparison.
        plan: table of the plan.
        config: table of the base configuration.
        split: the split that is evaluated.
        diagonal: evaluate each task only after its own training and at the end, not after every task.
        likelihood: for the main table, also measure the likelihood of the reference answers, there and for the backbone.
    """

    folder: Path
    plan: Mapping[str, Any]
    config: Mapping[str, Any]
    split: str = "test"
    diagonal: bool = False
    likelihood: bool = False
    _methods: dict[str, Any] = field(default_factory=dict)

    def order(self, name: str) -> list[str]:
        """The tasks in an order of the plan, as the configuration lists them (names or paths of cards)."""
        return order_of(self.plan, name, list(self.config.get("tasks", DEFAULT_TASKS)))

    def names(self, order: str) -> list[str]:
        """The names of the tasks in an order of the plan."""
        return [task_name(task) for task in self.order(order)]

    def config_of(self, order: str) -> Path:
        """The generated configuration of an order."""
        return self.folder / order / "dmole.toml"

    def write_configs(self) -> None:
        """Write the configuration of every order: the base configuration with the tasks in that order."""
        for order in self.plan["orders"]:
            write_lines(self.config_of(order), [toml({**self.config, "tasks": self.order(order)})])

    def stages_of(self, experiment: Experiment) -> dict[str, bool]:
        """Which of the stages `router`, `allocate` and `train` the method of an experiment has; imports it (and torch).

        Raises:
            DmoleError: the method's file cannot be used.
        """
        name = experiment.method
        if name not in self._methods:
            try:
                from dmole_cli.methods.base import load_method

                self._methods[name] = load_method(name)
            except DmoleError:
                raise
            except Exception as error:  # a new method's file may raise anything
                raise DmoleError(f"{source_of(name)} cannot be imported: {error!r}", "fix the file") from error
        method = self._methods[name]
        trained = method.trained_tasks(self.names(experiment.order))
        return {"router": method.uses_routers, "allocate": method.uses_allocation, "train": bool(trained)}

    def shared_steps(self, experiment: Experiment) -> list[Step]:
        """Profiles and routers of all tasks, which do not depend on seed, order or method."""
        root = self.folder / experiment.shared
        first = next(iter(self.plan["orders"]))
        paths = ("--run", str(root), "--config", str(self.config_of(first)))
        made_from = {key: self.config[key] for key in SHARED_SETTINGS if key in self.config}
        made_from["tasks"] = sorted(self.order(first))
        return [
            Step("profile", root, ("profile",), paths, made_from),
            Step("train-router", root, ("train-router", *experiment.router), paths, made_from),
        ]

    def training_steps(self, experiment: Experiment) -> list[Step]:
        """Allocation and training; experiments that differ in evaluation only share them.

        Raises:
            DmoleError: the plan gives arguments to a stage that the experiment's method does not have.
        """
        method, stages = experiment.method, self.stages_of(experiment)
        for stage, used in stages.items():
            if (arguments := getattr(experiment, stage)) and not used:
                message = f"{experiment.label} gives {stage} {' '.join(arguments)}, but {method} has no such stage"
                hint = "give them to a stage that it has (methods without allocate take train --budget)"
                raise DmoleError(message, hint)
        commands = {
            "allocate": ("allocate", "--method", method, *experiment.allocate),
            "train": ("train-task", "--method", method, "--seed", str(experiment.seed), *experiment.train),
        }
        root, paths, made_from = self._root(experiment), self._paths(experiment), self._made_from(experiment)
        return [
            Step(f"{arguments[0]}-{method}", root, arguments, paths, made_from)
            for stage, arguments in commands.items()
            if stages[stage]
        ]

    def evaluation_steps(self, experiment: Experiment) -> list[Step]:
        """The steps whose markers say that an experiment is finished; they do not need the method to be imported."""
        name = experiment.label if experiment.evaluate else experiment.method
        training = [*experiment.router, *experiment.allocate, *experiment.train]
        made_from = {**self._made_from(experiment), "training": training}
        split = () if self.split == "test" else ("--split", self.split)
        command = ("evaluate", "--method", experiment.method, *split, *experiment.evaluate, "--json", "--stage")
        root, paths = self._root(experiment), self._paths(experiment)
        ends = ("diagonal", "--stage", str(len(self.names(experiment.order))))
        stages = ends if self.diagonal else ("all",)
        steps = [Step(f"evaluate-{name}", root, (*command, *stages), paths, made_from)]
        if self.likelihood and experiment.group == MAIN:
            # Stage 0, the pretrained backbone, is the same for every method and the only stage of zero-shot.
            arguments = (*command, "0", "--stage", *ends, "--likelihood")
            steps.append(Step(f"likelihood-{name}", root, arguments, paths, made_from))
        return steps

    def _root(self, experiment: Experiment) -> Path:
        return self.folder / experiment.folder

    def _paths(self, experiment: Experiment) -> tuple[str, ...]:
        run, shared = self._root(experiment), self.folder / experiment.shared
        return ("--run", str(run), "--config", str(self.config_of(experiment.order)), "--shared", str(shared))

    def _made_from(self, experiment: Experiment) -> dict[str, Any]:
        method = experiment.method
        table = {key: value for key, value in self.config.items() if key != "method"}
        options = self.config.get("method", {}).get(method, {})
        tasks = self.order(experiment.order)
        made_from = {"tasks": tasks, "configuration": table, "options": options, "code": code_of(method)}
        return json.loads(json.dumps(made_from))

    def finished(self, experiment: Experiment) -> bool:
        """Whether all steps of an experiment are finished."""
        return all(step.finished for step in self.evaluation_steps(experiment))

    def seconds(self, experiment: Experiment) -> float:
        """Wall-clock seconds of a finished experiment's steps, without a training that it shares."""
        names = [step.name for step in self.evaluation_steps(experiment)]
        if not experiment.evaluate:
            names += [f"{command}-{experiment.method}" for command in ("allocate", "train-task")]
        markers = [self._root(experiment) / "steps" / f"{name}.json" for name in names]
        return sum(json.loads(path.read_text(encoding="utf-8"))["seconds"] for path in markers if path.exists())

    def run(self, experiment: Experiment) -> Iterator[str]:
        """Run the unfinished steps of an experiment; yields the name of each before it starts.

        Raises:
            DmoleError: a step fails, or existing results were made from something else.
        """
        stages = self.stages_of(experiment)
        steps = [*self.training_steps(experiment), *self.evaluation_steps(experiment)]
        if stages["allocate"] or stages["router"] or self._methods[experiment.method].uses_profile:
            self._copy_from("shared", experiment.shared, ("profiles", "features", "costs/profile"))
            steps = [*self.shared_steps(experiment), *steps]
        if experiment.trained_apart:
            # Cached predictions of the pretrained backbone are valid here, because their keys contain all inputs.
            self._copy_from(f"{experiment.order}/seed-{experiment.seed}", experiment.folder, ("generations",))
        for step in steps:
            with locked(step.marker.with_suffix(".lock")) as lock:
                if not step.finished:
                    yield step.name
                    step.run(lock)

    def _copy_from(self, source: str, target: str, folders: Sequence[str]) -> None:
        """Copy folders to the directory of a variant, unless it has them, instead of computing their content again."""
        for name in folders:
            old, new = self.folder / source / name, self.folder / target / name
            if source != target and old.is_dir() and not new.exists():
                partial = new.with_name(f"{new.name}.partial")
                shutil.rmtree(partial, ignore_errors=True)
                # Hidden files are being written by other processes.
                shutil.copytree(old, partial, ignore=shutil.ignore_patterns(".*"))
                partial.rename(new)

    def delete(self, experiment: Experiment) -> None:
        """Delete the artifacts of an experiment except cached predictions, which stay valid (see `run`)."""
        root, method = self._root(experiment), experiment.method
        run = Run(root, self.folder / experiment.shared)
        if not experiment.evaluate:
            for task in self.names(experiment.order):
                for path in (run.allocation(task, method), run.expert(task, method), run.memory(task, method)):
                    path.unlink(missing_ok=True)
        for marker in sorted((root / "steps").glob("*.json")):
            found = json.loads(marker.read_text(encoding="utf-8"))
            arguments = found.get("words", [])
            if method not in arguments or (experiment.evaluate and marker.stem != f"evaluate-{experiment.label}"):
                continue
            if name := found.get("evaluations"):
                for folder in (run.evaluations(self.split), run.likelihoods(self.split)):
                    shutil.rmtree(folder / name, ignore_errors=True)
                # Otherwise the seconds of the next evaluation would be added to these.
                for work in WORK:
                    shutil.rmtree(run.cost(cost_of(name, self.split, work=work), "task").parent, ignore_errors=True)
            marker.unlink()


def cost_of(evaluations: str, split: str, *, work: str = WORK[0]) -> str:
    """The name of the costs of a method's evaluations or likelihoods."""
    return "-".join([work, *([] if split == "test" else [split]), evaluations])
