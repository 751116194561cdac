"""Chains: what a method has of a task, from the profile to the evaluations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dmole_cli.artifacts.kinds import (
    ALLOCATION,
    D_MOLE,
    EVALUATION,
    EXPERT,
    KINDS,
    LIKELIHOOD,
    MEMORY,
    RESCORED,
    TRAINING_LOG,
)
from dmole_cli.artifacts.labels import base_method
from dmole_cli.methods.base import Method
from dmole_cli.verification.inspection import Inspection, Problem
from dmole_cli.verification.links import upstream

LINKS = ("profile", "allocation", "router", "expert", "evaluations")
OF_METHOD = (ALLOCATION, EXPERT, MEMORY, TRAINING_LOG, EVALUATION, LIKELIHOOD, RESCORED)


@dataclass(frozen=True)
class Chain:
    """The artifacts of one method and task.

    Attributes:
        method: the method.
        task: the task.
        links: link -> its files; a method's chain lacks what the method does not use.
        wanted: link -> files that a complete run has, which are those of `links` and missing ones.
    """

    method: str
    task: str
    links: Mapping[str, Sequence[Path]]
    wanted: Mapping[str, Sequence[Path]]

    @property
    def missing(self) -> list[tuple[str, Path]]:
        """(link, file) of everything that has not been made yet, in the order of the stages."""
        return [(link, path) for link in self.wanted for path in self.wanted[link] if path not in self.links[link]]

    def first_problem(self, inspection: Inspection) -> Problem | None:
        """The first broken link: sources before what was made from them."""
        paths = upstream(inspection, [path for link in LINKS for path in self.links.get(link, ())])
        position = {path: number for number, path in enumerate(paths)}
        broken = [problem for problem in inspection.problems if problem.path in position]
        gaps = {path for _, path in self.missing}
        missing = [problem for problem in inspection.problems if problem.path in gaps]
        return min(broken, key=lambda problem: position[problem.path], default=next(iter(missing), None))


def chains_of(inspection: Inspection, *, always: Sequence[str] = ()) -> list[Chain]:
    """The chain of every method that has artifacts, and every task of it; D-MoLE last.

    Args:
        inspection: of the run directory.
        always: methods that have chains even without artifacts.
    """
    labels = {
        base_method(found.label)
        for found in inspection.found.values()
        if found.label and found.task in inspection.tasks
    }
    shared = any(not found.label for found in inspection.found.values())
    methods = (labels & inspection.methods) | set(always) | ({D_MOLE} if shared and not labels else set())
    return [
        chain
        for name in sorted(methods, key=lambda name: (name == D_MOLE, name))
        for task in inspection.tasks
        if (chain := _chain(inspection, inspection.rules(name), task)) is not None
    ]


def _chain(inspection: Inspection, rules: Method, task: str) -> Chain | None:
    run, stream = inspection.run, inspection.settings.tasks
    trains = task in rules.trained_tasks(stream)
    profiled = rules.uses_allocation or (rules.uses_profile and task == stream[0])
    wanted: dict[str, list[Path]] = {
        "profile": [run.profile(task)] if trains and profiled else [],
        "allocation": [run.allocation(task, rules.name)] if trains and rules.uses_allocation else [],
        "router": [run.features(task), run.router(task)] if trains and rules.uses_routers else [],
        "expert": [run.expert(task, rules.name)] if trains else [],
        "evaluations": [run.evaluation(rules.name, *entry) for entry in _entries(rules, inspection, task)],
    }
    if trains and rules.has_memory:
        wanted["expert"].insert(0, run.memory(task, rules.name))
    links = {link: [path for path in paths if path.exists()] for link, paths in wanted.items()}
    further = [path for path in _further(inspection, rules.name, task) if path not in links["evaluations"]]
    links["evaluations"] += further
    if (log := run.training_log(task, rules.name)).exists():
        links["expert"].append(log)
    return Chain(rules.name, task, links, wanted) if any(wanted.values()) or any(links.values()) else None


def _entries(rules: Method, inspection: Inspection, task: str) -> list[tuple[int, str]]:
    entries = rules.entries(inspection.settings.tasks, inspection.settings.unseen)
    return sorted((after, name) for after, name in entries if name == task)


def _further(inspection: Inspection, method: str, task: str) -> Iterator[Path]:
    """Evaluations under other routing, on other splits and by other metrics, and likelihoods; originals first."""
    for kind in (EVALUATION, LIKELIHOOD, RESCORED):
        for path, found in inspection.found.items():
            if found.kind is kind and found.task == task and base_method(found.label) == method:
                yield path


def in_order(inspection: Inspection, problems: Iterable[Problem]) -> list[Problem]:
    """Problems in the order in which the stages make the files, each once; those of other files come last."""

    def position(problem: Problem) -> int:
        identified = inspection.run.identify(problem.path)
        return KINDS.index(identified[0]) if identified is not None else len(KINDS)

    return sorted(dict.fromkeys(problems), key=position)
