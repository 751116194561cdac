"""Stage `evaluate`: entries of the score matrix, every task after every task; no prediction is generated twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from dmole_cli.artifacts.costs import measured
from dmole_cli.artifacts.headers import is_current
from dmole_cli.artifacts.kinds import D_MOLE, EVALUATION, LIKELIHOOD, Kind
from dmole_cli.artifacts.labels import labelled
from dmole_cli.artifacts.outcome import Outcome
from dmole_cli.artifacts.provenance import Header, versions
from dmole_cli.artifacts.router import read_router
from dmole_cli.artifacts.run import Run
from dmole_cli.backbones.lazy_model import LazyModel
from dmole_cli.data.card import TaskCard
from dmole_cli.data.tasks import Tasks
from dmole_cli.errors import DmoleError
from dmole_cli.experts.weighting import Weighting
from dmole_cli.inference.batched import BatchedInference
from dmole_cli.inference.entries import Assignment, Computed, EntryFile, Pending, evaluations, likelihoods
from dmole_cli.methods._trained import digests_of_used, refuse_unused_routing, trained_tasks
from dmole_cli.methods.base import Method, Routing, load_method
from dmole_cli.processes import world
from dmole_cli.progress import Track, quiet
from dmole_cli.routing.autoencoder import from_tensors
from dmole_cli.routing.features import routing_features
from dmole_cli.settings.model import Settings


@dataclass(frozen=True)
class Selection:
    """The entries to evaluate.

    Attributes:
        after: numbers of trained tasks (0 for the pretrained backbone), None for those trained so far.
        tasks: names of tasks, None for the stream and the unseen ones.
        diagonal: each task after its own training, too, whatever `after`.
        likelihood: write likelihoods of reference answers, too.
        replace: evaluate stale and damaged entries again, with cached predictions where these are still valid, instead of
            refusing them.
    """

    after: Sequence[int] | None = None
    tasks: Sequence[str] | None = None
    diagonal: bool = False
    likelihood: bool = False
    replace: bool = False

    @property
    def outputs(self) -> Sequence[Output]:
        """The files that every entry gets."""
        return OUTPUTS if self.likelihood else OUTPUTS[:1]

    def has(self, after: int, task: str, stream: Sequence[str]) -> bool:
        """Whether an entry is selected."""
        own = self.diagonal and 0 < after <= len(stream) and stream[after - 1] == task
        return (self.after is None or after in self.after or own) and (self.tasks is None or task in self.tasks)


@dataclass(frozen=True)
class Output:
    """One of the files that an entry has.

    Attributes:
        kind: of the artifact.
        stage: name of the work in outcomes.
        card_settings: settings of the task's card that shape it.
        compute: computes it for some entries of a task.
    """

    kind: Kind
    stage: str
    card_settings: Callable[[TaskCard], dict[str, Any]]
    compute: Callable[[BatchedInference, Pending], list[Computed]]


OUTPUTS = (
    Output(
        EVALUATION,
        "evaluate",
        lambda card: {"metric": card.metric, "generation": card.generation.model_dump()},
        evaluations,
    ),
    Output(LIKELIHOOD, "likelihood", lambda card: {"answers": list(card.answers)}, likelihoods),
)


@dataclass(frozen=True)
class _Parts:
    """What the evaluation of a method depends on."""

    rules: Method
    settings: Settings
    data: Tasks
    model: LazyModel
    run: Run

    def weighting(self, tasks: Sequence[str]) -> Weighting:
        """How the experts of some trained tasks are weighted."""
        found = self.rules.weighting(self.run, tasks)
        assert found is not None, "asked only of a method that weights experts"
        return found


def evaluate(
    method: str = D_MOLE,
    selection: Selection = Selection(),
    *,
    settings: Settings,
    data: Tasks,
    model: LazyModel,
    run: Run,
    force: bool = False,
    track: Track = quiet,
) -> list[Outcome]:
    """Evaluate entries of a method's score matrix; writes `evaluations/<method>/<after>/<task>.parquet`, and on request
    `likelihoods/<method>/<after>/<task>.parquet` (for the validation split, in folders of their own).

    Raises:
        DmoleError: an expert or a router is missing, stale or another backbone's; a split cannot be read.
    """
    parts = _Parts(load_method(method), settings, data, model, run)
    rules = parts.rules
    refuse_unused_routing(rules, settings.evaluate)
    trained = range(world().from_first(lambda: trained_tasks(rules, settings, run)) + 1)
    selected = [
        (after, task)
        for after, task in rules.entries(settings.tasks, settings.unseen)
        if (selection.after is not None or after in trained) and selection.has(after, task, settings.tasks)
    ]
    if not selected:
        raise DmoleError(
            f"method {method} has no such entry to evaluate", "see `dmole evaluate --help` for --stage and --task"
        )
    outcomes = []
    for task in dict.fromkeys(task for _, task in selected):
        after = [after for after, name in selected if name == task]
        outcomes += _evaluate_task(parts, task, after, selection, force=force, track=track)
    return outcomes


def _evaluate_task(
    parts: _Parts, task: str, after: Sequence[int], selection: Selection, *, force: bool, track: Track
) -> list[Outcome]:
    settings, run, rules, outputs = parts.settings, parts.run, parts.rules, selection.outputs
    current = partial(is_current, force=force, replace=selection.replace)
    split, label = settings.evaluate.split, labelled(rules.name, settings.evaluate)
    outcomes = []
    pending: dict[str, list[EntryFile]] = {}
    used = {
        number: digests_of_used(
            rules,
            settings,
            run,
            after=number,
            task=task,
            fingerprint=parts.model.fingerprint,
            data=parts.data.current_digest,
        )
        for number in after
    }
    for output in outputs:
        pending[output.stage] = []
        for number in after:
            values = {"method": label, "after": str(number), "task": task, "split": split}
            path, header = run.path(output.kind, **values), _header(parts, output, task, number, used[number])
            if world().from_first(partial(current, path, output.kind, header)):
                outcomes.append(Outcome(f"{output.stage} {label}", task, path, facts={"at_stage": number}))
            else:
                pending[output.stage].append(EntryFile(number, path, header))
    missing = sorted({file.after for files in pending.values() for file in files})
    if not missing:
        return outcomes
    # Likelihoods alone are separate work: the seconds of predictions are compared.
    work = OUTPUTS[0].stage if pending[OUTPUTS[0].stage] else OUTPUTS[1].stage
    cost = "-".join([work, *([] if split == "test" else [split]), label])
    weighting = parts.weighting if rules.weighted else None
    inference = BatchedInference(
        task, rules.name, rules.merges, settings, parts.data, parts.model, run, force, track, weighting
    )
    with measured(run.cost(cost, task), parts.model.counts, adding=True):
        losses = world().share(_router_losses(parts, task, missing[-1], track)) if rules.uses_routers else None
        distances = world().share(_distances(parts, task, missing, track)) if rules.weighted else {}
        assigned = {number: _assignment(parts, task, number, losses, distances.get(number)) for number in missing}
        computed = {
            output: output.compute(inference, [(file, assigned[file.after]) for file in files])
            for output in outputs
            if (files := pending[output.stage])
        }
    for output, entries in computed.items():
        for entry in entries:
            entry.write()
            facts = {"at_stage": entry.file.after, **entry.figures}
            outcomes.append(Outcome(f"{output.stage} {label}", task, entry.file.path, written=True, facts=facts))
    parts.data.image_digests.save()
    world().wait()
    return outcomes


def _header(parts: _Parts, output: Output, task: str, after: int, artifacts: dict[str, str]) -> Header:
    chosen, rules, card = parts.settings.evaluate, parts.rules, parts.data.card(task)
    learned = rules.learned(parts.settings.tasks, after, task)
    settings = {"method": rules.name, "stage": after, "learned": learned, "precision": parts.model.precision}
    settings |= chosen.for_header() | output.card_settings(card)
    if rules.uses_routers:
        settings |= {"routing": chosen.routing, "threshold_scale": chosen.threshold_scale}
        if chosen.routing == "batch-vote":
            settings["batch_size"] = chosen.batch_size
    return Header.of(
        output.kind,
        backbone=parts.model.fingerprint,
        settings=settings,
        inputs={**parts.data.inputs((task, chosen.split)), **artifacts},
        versions=versions("torch", "transformers"),
    )


def _router_losses(parts: _Parts, task: str, after: int, track: Track) -> dict[str, tuple[float, list[float]]]:
    """Trained task -> the threshold of its router, and the reconstruction losses of the evaluated samples under it."""
    trained, run = parts.settings.tasks[:after], parts.run
    if not trained:
        return {}
    features = _features(parts, task, track)
    found = {}
    for name in trained:
        router = read_router(run.router(name))
        found[name] = (router.threshold, from_tensors(router.tensors, decoder=router.decoder).losses(features).tolist())
    return found


def _distances(parts: _Parts, task: str, after: Sequence[int], track: Track) -> dict[int, list[list[float]]]:
    """Number of trained tasks -> distances of the evaluated samples to them [samples][tasks], where experts are weighted."""
    stages = [number for number in after if number]
    if not stages:
        return {}
    features, stream = _features(parts, task, track), parts.settings.tasks
    return {number: parts.weighting(stream[:number]).distances(features).tolist() for number in stages}


def _features(parts: _Parts, task: str, track: Track) -> torch.Tensor:
    """Routing features of the evaluated samples."""
    split, backbone, workers = parts.settings.evaluate.split, parts.model.load(), parts.settings.workers
    return routing_features(
        task, split, data=parts.data, backbone=backbone, run=parts.run, track=track, workers=workers
    )


def _routing(
    parts: _Parts, trained: Sequence[str], task: str, losses: list[list[float]], thresholds: list[float]
) -> Routing:
    chosen = parts.settings.evaluate
    return Routing(trained, task, losses, thresholds, chosen.routing, chosen.batch_size)


def _assignment(
    parts: _Parts,
    task: str,
    after: int,
    found: dict[str, tuple[float, list[float]]] | None,
    distances: list[list[float]] | None,
) -> Assignment:
    trained, chosen = parts.settings.tasks[:after], parts.settings.evaluate
    samples = parts.data.samples(task, chosen.split)
    columns = [found[name][1] for name in trained] if found else []
    losses = [list(row) for row in zip(*columns, strict=True)] if columns else [[] for _ in samples]
    thresholds = [found[name][0] * chosen.threshold_scale for name in trained] if found else []
    active: list[tuple[str, ...]] = [() for _ in samples]
    if after:
        active = parts.rules.active_experts(_routing(parts, trained, task, losses, thresholds))
    if distances is None:
        return Assignment(active, losses, [() for _ in samples])
    weighting = parts.weighting(trained)
    return Assignment(active, distances, [weighting.weights(row) for row in distances])
