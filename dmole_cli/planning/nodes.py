"""The files that a complete stream has, in the order in which the stages make them, with what each is made from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dmole_cli.artifacts.kinds import D_MOLE, EVALUATION, LIKELIHOOD, RESCORED
from dmole_cli.artifacts.labels import base_method, labelled
from dmole_cli.methods._previous import previous_artifacts
from dmole_cli.methods._trained import experts_in_use, routing_files
from dmole_cli.methods.base import Entry, TaskContext
from dmole_cli.settings.model import EvaluateSettings, Settings
from dmole_cli.verification.chains import LINKS, Chain, chains_of
from dmole_cli.verification.inspection import Found, Inspection
from dmole_cli.verification.settings import routing_of

# Kinds of files of an entry of the score matrix -> the stage that makes them.
ENTRIES = {EVALUATION: "evaluate", LIKELIHOOD: "likelihood", RESCORED: "rescore"}


@dataclass(frozen=True)
class Call:
    """A call of a stage for one task; all files that it makes are made together.

    Attributes:
        stage: name of the stage; `likelihood` for the likelihoods that `evaluate` computes.
        task: name of the task.
        label: the method, of evaluations with its routing; empty where no method is involved.
        split: of evaluations.
        metric: of evaluations that are scored again.
    """

    stage: str
    task: str
    label: str = ""
    split: str = ""
    metric: str = ""

    def evaluate(self, settings: Settings) -> EvaluateSettings:
        """The settings of the evaluation: split and routing of the call, the rest as configured."""
        default = EvaluateSettings()
        plain = {"routing": default.routing, "threshold_scale": default.threshold_scale}
        return settings.evaluate.updated(**{**plain, **routing_of(self.label), "split": self.split})


@dataclass(frozen=True)
class Node:
    """A file of a complete stream.

    Attributes:
        path: the file.
        call: what makes it.
        reads: the artifacts that it would be made from now.
        data: (task, split) of the data that it would be made from.
        after: number of trained tasks, of an entry of the score matrix.
    """

    path: Path
    call: Call
    reads: tuple[Path, ...] = ()
    data: tuple[tuple[str, str], ...] = ()
    after: int | None = None


def methods_of(inspection: Inspection) -> list[str]:
    """D-MoLE, then the other methods that have artifacts of the stream's tasks."""
    labels = {base_method(f.label) for f in inspection.found.values() if f.label and inspection.is_known(f)}
    return [D_MOLE, *sorted(labels - {D_MOLE})]


def nodes_of(inspection: Inspection, methods: Sequence[str]) -> list[Node]:
    """The files that a complete stream has of some methods, each after those that it is made from.

    Every method has all entries of its score matrix, with the configured routing and split. Of other routing, other splits and
    other metrics, and of likelihoods, there are the entries that exist.
    """
    chains = [chain for chain in chains_of(inspection, always=methods) if chain.method in methods]
    chains.sort(key=lambda chain: methods.index(chain.method))
    found: dict[Path, Node] = {}
    for link in LINKS[:-1]:
        for chain in chains:
            for path in chain.wanted[link]:
                found.setdefault(path, _node(inspection, chain, link, path))
    for method in methods:
        for node in _matrix(inspection, method):
            found.setdefault(node.path, node)
    entries = {name: set(_entries_of(inspection, name)) for name in methods}
    further = [one for one in inspection.found.values() if one.kind in ENTRIES and one.path not in found]
    for one in sorted(further, key=lambda one: list(ENTRIES).index(one.kind)):
        if (one.after, one.task) in entries.get(base_method(one.label), ()):
            found[one.path] = _existing(inspection, one)
    return list(found.values())


def _node(inspection: Inspection, chain: Chain, link: str, path: Path) -> Node:
    run, settings, task, method = inspection.run, inspection.settings, chain.task, chain.method
    own = ((task, "train"),)
    if link == "profile":
        return Node(path, Call("profile", task), data=own)
    if link == "router":
        return Node(path, Call("train-router", task), data=own)
    if link == "allocation":
        return Node(path, Call("allocate", task, method), (run.profile(task),))
    rules = inspection.rules(method)
    context = TaskContext(rules, run, settings, rules.option_values(settings), task)
    shares = rules.data_shares(settings.tasks, task, context.options)
    reads = (*rules.inputs(context), *previous_artifacts(context))
    return Node(path, Call("train-task", task, method), reads, tuple((name, "train") for name in shares))


def _entries_of(inspection: Inspection, method: str) -> list[Entry]:
    return inspection.rules(method).entries(inspection.settings.tasks, inspection.settings.unseen)


def _matrix(inspection: Inspection, method: str) -> Iterator[Node]:
    """The entries of a method's score matrix."""
    settings, rules = inspection.settings, inspection.rules(method)
    split = settings.evaluate.split
    label = labelled(method, settings.evaluate) if rules.uses_routers else method
    for after, task in _entries_of(inspection, method):
        path = inspection.run.evaluation(label, after, task, split)
        yield _entry(inspection, path, Call("evaluate", task, label, split), after)


def _existing(inspection: Inspection, found: Found) -> Node:
    """An entry that exists, of any kind, routing and split."""
    values = {key: value for key, value in found.values.items() if key != "metric"}
    call = Call(ENTRIES[found.kind], found.task, found.label, found.split, found.values.get("metric", ""))
    if found.kind is RESCORED:
        return Node(found.path, call, (inspection.run.path(EVALUATION, **values),), after=found.after)
    return _entry(inspection, found.path, call, found.after)


def _entry(inspection: Inspection, path: Path, call: Call, after: int) -> Node:
    run, settings, rules = inspection.run, inspection.settings, inspection.rules(call.label)
    used = experts_in_use(rules, settings.tasks[:after], call.task, call.evaluate(settings))
    experts = [run.expert(task, rules.name) for task in used]
    routing = [path for task in used for path in routing_files(rules, run, task)]
    return Node(path, call, (*experts, *routing), ((call.task, call.split),), after)
