"""The comparison as a workflow of Snakemake: which artifact each job writes, from which others, and with which command."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from _files import toml, write_lines
from _options import Options, options_in, with_options
from _plan import MAIN, Experiment, order_of
from _results import cost_of

import dmole_cli
from dmole_cli.artifacts.files import digest_of_file, write_json
from dmole_cli.artifacts.labels import labelled
from dmole_cli.artifacts.run import Run
from dmole_cli.data.card import load_card, task_name
from dmole_cli.errors import DmoleError
from dmole_cli.methods.base import Method, load_method
from dmole_cli.settings.model import DEFAULT_TASKS, DEFAULT_UNSEEN, EvaluateSettings

_card = cache(load_card)
PACKAGE = Path(dmole_cli.__file__).parent
# Settings that shape profiles, features and routers, beside the tasks.
SHARED_SETTINGS = ("backbone", "data_root", "profile", "router")
LINKED = ("profiles", "costs/profile", "features")
ROUTING = {"--routing": ("routing", str), "--threshold-scale": ("threshold_scale", float)}
# Artifact -> the job that makes it: its stage, inputs, command, what shapes it beside them, and folders that belong to it.
Jobs = dict[str, dict[str, Any]]
# An artifact, the words of its command, and its inputs.
Step = tuple[Path, tuple[str, ...], list[Path]]


@dataclass(frozen=True)
class Comparison:
    """A folder of experiments.

    Attributes:
        folder: of the comparison.
        plan: table of the plan.
        config: table of the base configuration.
        split: the split that is evaluated.
        diagonal: evaluate each task only after its own training and at the end, not after every task.
        likelihood: for the main table, also measure the likelihood of the reference answers, there and for the backbone.
        options: table of the options that were chosen for the methods; those of the configuration take precedence.
        source: the configuration as it is given to run.py; empty for that of the first stream.
    """

    folder: Path
    plan: Mapping[str, Any]
    config: Mapping[str, Any]
    split: str = "test"
    diagonal: bool = False
    likelihood: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""

    def order(self, name: str) -> list[str]:
        """The tasks in an order of the plan, as the configuration lists them (names or paths of cards)."""
        return order_of(self.plan, name, list(self.config.get("tasks", DEFAULT_TASKS)))

    def names(self, order: str) -> list[str]:
        """The names of the tasks in an order of the plan."""
        return [task_name(task) for task in self.order(order)]

    def method_options(self, order: str) -> dict[str, Options]:
        """Row -> its options in one order."""
        return {**options_in(self.options, order), **self.config.get("method", {})}

    def write_configs(self) -> None:
        """Write the configuration of every order: the base configuration with the tasks in that order and its options."""
        variants = self.plan.get("variants", {})
        for order in self.plan["orders"]:
            own = {row: options for row, options in self.method_options(order).items() if row not in variants}
            table = {**self.config, "tasks": self.order(order), **({"method": own} if own else {})}
            write_lines(self.folder / order / "dmole.toml", [toml(table)])

    def jobs(self, experiment: Experiment) -> tuple[Experiment, Jobs]:
        """An experiment with the path of its result, and its jobs: artifact -> what it is made from, and the command.

        All paths are relative to the folder of the comparison.

        Raises:
            DmoleError: the method's file cannot be used, or the plan gives arguments to a stage that the method does not have.
        """
        options = self.method_options(experiment.order)
        if experiment.label in self.plan.get("variants", {}) and experiment.label in options:
            experiment = with_options(experiment, options[experiment.label])
        method, tasks = _method(experiment.method), self.names(experiment.order)
        trained = method.trained_tasks(tasks)
        has = {"router": method.uses_routers, "allocate": method.uses_allocation, "train": bool(trained)}
        for stage, used in has.items():
            if (words := getattr(experiment, stage)) and not used:
                message = f"{experiment.label} gives {stage} {' '.join(words)}, but {method.name} has no such stage"
                hint = "give them to a stage that it has (methods without allocate take train --budget)"
                raise DmoleError(message, hint)
        jobs = self._shared_jobs(method, "shared")
        if experiment.router:
            jobs |= self._shared_jobs(method, experiment.shared, experiment.router)
        places = {"run": experiment.folder, "config": f"{experiment.order}/dmole.toml", "shared": experiment.shared}
        parts = (experiment, method, Run(Path(experiment.folder), Path(experiment.shared)), tasks)
        evaluation = self._evaluation(*parts)
        for path, words, inputs in [*self._training(*parts), *evaluation]:
            # Cached predictions of the pretrained backbone are valid here, because their keys contain all inputs.
            apart = words[0] == "evaluate" and experiment.trained_apart
            usual = f"{experiment.order}/seed-{experiment.seed}"
            first = _linked("generations", usual, experiment.folder) if apart else ""
            made_from = self._made_from(method, tasks, options.get(method.name, {}))
            jobs[str(path)] = _job(words, places, inputs, made_from, first)
            labels = [path.parts[-3]] if words[0] == "evaluate" else [method.name, f"{method.name}@*"]
            jobs[str(path)]["folders"] = [name for label in labels for name in self._evaluated(parts[2], label)]
        return replace(experiment, result=str(evaluation[0][0])), jobs

    def _training(self, experiment: Experiment, method: Method, run: Run, tasks: Sequence[str]) -> list[Step]:
        """Allocation and training; experiments that differ in evaluation only share them."""
        steps: list[Step] = []
        for task in tasks if method.uses_allocation else ():
            words = ("allocate", "--task", task, "--method", method.name, *experiment.allocate)
            steps.append((run.allocation(task, method.name), words, [run.profile(task)]))
        for task in method.trained_tasks(tasks):
            earlier = tasks[: tasks.index(task)] if method.protocol == "sequential" else []
            inputs = [run.expert(name, method.name) for name in earlier]
            inputs += [run.router(name) for name in (*earlier, task) if method.uses_routers]
            inputs += [run.allocation(task, method.name)] if method.uses_allocation else []
            inputs += [run.profile(task)] if method.uses_profile else []
            words = ("train-task", "--task", task, "--method", method.name, "--seed", str(experiment.seed))
            steps.append((run.expert(task, method.name), (*words, *experiment.train), inputs))
        return steps

    def _evaluation(self, experiment: Experiment, method: Method, run: Run, tasks: Sequence[str]) -> list[Step]:
        """Evaluation and likelihoods; of the many files, dmole writes that of the last stage of the last task last."""
        typed = zip(experiment.evaluate[::2], experiment.evaluate[1::2], strict=False)
        routing = {ROUTING[option][0]: ROUTING[option][1](value) for option, value in typed if option in ROUTING}
        label = labelled(method.name, EvaluateSettings().updated(**self.config.get("evaluate", {}), **routing))
        entries = method.entries(tasks, list(map(task_name, self.config.get("unseen", DEFAULT_UNSEEN))))
        after = max(stage for stage, _ in entries)
        last = (label, after, [task for stage, task in entries if stage == after][-1], self.split)
        inputs = [run.expert(task, method.name) for task in method.trained_tasks(tasks)]
        inputs += [run.router(task) for task in tasks if method.uses_routers]
        words = ("evaluate", "--method", method.name, "--split", self.split, *experiment.evaluate)
        ends = ("--stage", "diagonal", "--stage", str(len(tasks)))
        result = run.evaluation(*last)
        steps: list[Step] = [(result, (*words, *(ends if self.diagonal else ("--stage", "all"))), inputs)]
        if self.likelihood and experiment.group == MAIN:
            # Stage 0, the pretrained backbone, is the same for every method and the only stage of zero-shot.
            steps.append((run.likelihood(*last), (*words, "--stage", "0", *ends, "--likelihood"), [*inputs, result]))
        return steps

    def _evaluated(self, run: Run, label: str) -> list[str]:
        """Patterns of the folders of evaluations, likelihoods, and their costs, to which those of later ones would be added."""
        folders = [run.evaluations(self.split) / label, run.likelihoods(self.split) / label]
        works = ("evaluate", "likelihood")
        folders += [run.cost(cost_of(label, self.split, work=work), "task").parent for work in works]
        return list(map(str, folders))

    def _shared_jobs(self, method: Method, folder: str, arguments: Sequence[str] = ()) -> Jobs:
        """Profiles and routers, which do not depend on seed, order or method; in a folder of their own with `arguments`."""
        order, jobs = next(iter(self.plan["orders"])), Jobs()
        table = {key: self.config[key] for key in SHARED_SETTINGS if key in self.config}
        run, usual = Run(Path(folder)), Run(Path("shared"))
        # Routers with other arguments are trained on the same features.
        first = "".join(_linked(name, "shared", folder) for name in LINKED) if arguments else ""
        for task in self.order(order):
            name = task_name(task)
            steps = [("profile", run.profile, (), method.uses_allocation or method.uses_profile)]
            steps += [("train-router", run.router, arguments, method.uses_routers)]
            for command, path_of, own, used in steps:
                if used:
                    inputs = [getattr(usual, path_of.__name__)(name)] if arguments else []
                    places = {"run": folder, "config": f"{order}/dmole.toml"}
                    made_from = {**table, "card": digest_of_file(_card(task).path)}
                    path, words = path_of(name), (command, "--task", name, *own)
                    jobs[str(path)] = _job(words, places, inputs, made_from, first)
        return jobs

    def _made_from(self, method: Method, tasks: Sequence[str], options: Options) -> dict[str, Any]:
        """What shapes an experiment beside its command: settings, the method's options and code, and the tasks' cards."""
        shelf = PACKAGE / "methods"
        files = [shelf / f"{method.name.replace('-', '_')}.py", *sorted(shelf.glob("_*.py"))]
        files += [_card(task).path for task in self.config.get("tasks", DEFAULT_TASKS)]
        digests = {path.name: digest_of_file(path) for path in files}
        return {**self.config, "tasks": list(tasks), "method": dict(options), "files": digests}


@cache
def _method(name: str) -> Method:
    try:
        return load_method(name)
    except DmoleError:
        raise
    except Exception as error:  # a new method's file may raise anything
        raise DmoleError(f"{name.replace('-', '_')}.py cannot be imported: {error!r}", "fix the file") from error


def _job(
    words: Sequence[str], places: Mapping[str, str], inputs: Sequence[Path], made_from: Mapping[str, Any], first: str
) -> dict[str, Any]:
    # Runs in the folder in which run.py was started; $OLDPWD is that of the comparison.
    paths = "".join(f' --{option} "$OLDPWD"/{shlex.quote(place)}' for option, place in places.items())
    return {
        "stage": "likelihood" if "--likelihood" in words else words[0],
        "inputs": list(map(str, inputs)),
        "command": f"{first}dmole {shlex.join(words)}{paths}",
        "made_from": json.dumps(made_from, sort_keys=True),
        "folders": [],
    }


def write_workflow(folder: Path, found: Iterable[Jobs]) -> Jobs:
    """Write `workflow.json`, which the Snakefile reads; returns all jobs, in the order in which they are to run."""
    jobs = {path: job for own in found for path, job in own.items()}
    jobs = {path: {**job, "priority": len(jobs) - place} for place, (path, job) in enumerate(jobs.items())}
    program = shlex.join([sys.executable, "-P", "-m", "dmole_cli"])
    write_json(
        folder / "workflow.json", {"jobs": jobs, "targets": list(jobs), "cwd": str(Path.cwd()), "dmole": program}
    )
    return jobs


def _linked(name: str, source: str, target: str) -> str:
    """Shell commands that link the files of a folder into another one, instead of computing them again."""
    old, new = (f'"$OLDPWD"/{shlex.quote(f"{folder}/{name}")}' for folder in (source, target))
    return f"mkdir -p {new}; cp -l {old}/* {new}/ 2>/dev/null || true; "
