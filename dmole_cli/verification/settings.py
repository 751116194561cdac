"""Whether artifacts were made with the settings of the run, and evaluations with the experts and routers of their entry."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from dmole_cli.artifacts.bundle import is_from_bundle
from dmole_cli.artifacts.errors import StaleArtifact
from dmole_cli.artifacts.expert import is_imported
from dmole_cli.artifacts.kinds import (
    ALLOCATION,
    EVALUATION,
    EXPERT,
    LIKELIHOOD,
    PROFILE,
    RESCORED,
    ROUTER,
)
from dmole_cli.artifacts.labels import labelled
from dmole_cli.artifacts.provenance import DATA_PREFIX, Header
from dmole_cli.data.card import TaskCard
from dmole_cli.errors import DmoleError
from dmole_cli.methods._trained import experts_in_use, routing_files
from dmole_cli.methods.base import Method
from dmole_cli.settings.declare import Section
from dmole_cli.settings.model import AllocateSettings, EvaluateSettings, ProfileSettings, TrainSettings
from dmole_cli.verification.inspection import Found, Inspection
from dmole_cli.verification.links import contradiction

# A setting that the machine may choose; its value in headers is then not compared.
AUTO = "auto"
# The values of settings that headers have only where they are not the defaults.
UNRECORDED = {
    **ProfileSettings().when_set(),
    **AllocateSettings().when_set(),
    **TrainSettings().when_set(),
    "training_vote": TrainSettings().training_vote,
}


def check_settings(inspection: Inspection, found: Found) -> None:
    """Report an artifact that was made with other settings than the run has, or whose header contradicts its path."""
    if found.header is None or not inspection.is_known(found) or is_imported(found.header):
        return
    if is_from_bundle(inspection.run, found.path):
        return
    try:
        seed, expected = _expected(inspection, found)
    except DmoleError:  # the card or the data cannot be read: reported as a link
        return
    changes = _changes(found.header, expected)
    if found.kind in (PROFILE, ROUTER, EXPERT) and found.header.seed != seed:
        changes.insert(0, f"seed {found.header.seed} -> {seed}")
    if changes:
        restore = "restore these settings in the configuration, or"
        inspection.report(found.path, StaleArtifact(found.path, "; ".join(changes)), before=restore)
    elif found.kind in (EVALUATION, LIKELIHOOD):
        _check_experts(inspection, found)


def _expected(inspection: Inspection, found: Found) -> tuple[int | None, dict[str, Any]]:
    """The seed, and the settings that a header must have as far as they are known."""
    settings, header = inspection.settings, found.header
    assert header is not None
    precision = {} if settings.precision == AUTO or settings.dtype != "float32" else {"precision": settings.precision}
    if found.kind is PROFILE:
        limit = {"max_length": settings.train.max_length}
        return settings.profile.seed, {**_complete(settings.profile), **limit, **precision}
    if found.kind is ROUTER:
        return settings.router.seed, _complete(settings.router)
    if found.kind is ALLOCATION:
        return None, _of_allocation(inspection, found)
    if found.kind is EXPERT:
        return settings.seed, {**_of_expert(inspection, found), **precision}
    if found.kind in (EVALUATION, LIKELIHOOD, RESCORED):
        return None, {**_of_evaluation(inspection, found), **precision}
    return None, {}


def _changes(header: Header, expected: Mapping[str, Any]) -> list[str]:
    made, wanted = header.as_dict()["settings"], json.loads(json.dumps(expected))
    found = {key: made.get(key, UNRECORDED.get(key)) for key in sorted(wanted)}
    return [f"{key} {value} -> {wanted[key]}" for key, value in found.items() if value != wanted[key]]


def _complete(section: Section) -> dict[str, Any]:
    """The settings of a section that shape what its stage writes, also those that headers have only where they are set."""
    return {**section.when_set(), **section.for_header()}


def _of_allocation(inspection: Inspection, found: Found) -> dict[str, Any]:
    configured = inspection.settings.allocate
    chosen = inspection.rules(found.label).allocation_settings(configured)
    expected = {**_complete(chosen), "modalities": list(chosen.modalities)}
    if chosen.modalities != configured.modalities:
        # The ablation spends the budget at a rank that follows from the profile, at the same alpha / rank.
        expected = {key: value for key, value in expected.items() if key not in ("rank", "alpha", "max_rank")}
    return expected


def _of_expert(inspection: Inspection, found: Found) -> dict[str, Any]:
    """The settings that `train-task` records, but for the precision."""
    from dmole_cli.training.samples import recipe_for, row_counts

    settings, data, task = inspection.settings, inspection.data, found.task
    rules = inspection.rules(found.label)
    options = rules.option_values(settings)
    if task not in rules.trained_tasks(settings.tasks):
        return {"method": f"{rules.name} trains nothing at task {task}"}
    shares = rules.data_shares(settings.tasks, task, options)
    recipe = recipe_for(
        task,
        {name: data.card(name) for name in shares},
        chosen=settings.train,
        options=options,
        rows=row_counts(task, shares, data=data),
        own_epochs=rules.protocol == "joint",
    )
    expected = {**settings.train.when_set(), **recipe.settings, **rules.header_settings(settings), "options": options}
    if expected.get("transfer"):  # a vote needs transfer experts
        expected["training_vote"] = settings.train.training_vote
    return {"method": rules.name, **expected}


def _of_evaluation(inspection: Inspection, found: Found) -> dict[str, Any]:
    """The settings that `evaluate` records, but for the precision."""
    rules, card = inspection.rules(found.label), inspection.data.card(found.task)
    learned = rules.learned(inspection.settings.tasks, found.after, found.task)
    expected: dict[str, Any] = {"method": rules.name, "stage": found.after, **_of_card(found, card)}
    if rules.protocol != "joint":  # which shuffles the union of all tasks, so that their order means nothing
        expected["learned"] = learned
    if rules.uses_routers:
        chosen = chosen_routing(found)
        expected |= {"routing": chosen.routing, "threshold_scale": chosen.threshold_scale}
        if labelled(rules.name, chosen) != found.label:
            expected["routing"] = f"that of {found.label}"
    return expected


def _of_card(found: Found, card: TaskCard) -> dict[str, Any]:
    if found.kind is LIKELIHOOD:
        return {"answers": list(card.answers)}
    metric = found.values["metric"] if found.kind is RESCORED else card.metric
    return {"metric": metric, "generation": card.generation.model_dump()}


def chosen_routing(found: Found) -> EvaluateSettings:
    """The routing of an evaluation, by the name of its folder (`d-mole@oracle`, `d-mole@top-1@1.25`); of a vote by batches,
    the size of the batches by its header."""
    options = routing_of(found.label)
    size = found.header.settings.get("batch_size") if found.header is not None else None
    if isinstance(size, int):
        options["batch_size"] = size
    return EvaluateSettings().updated(**options)


def routing_of(label: str) -> dict[str, Any]:
    """The routing options in the name of a folder of evaluations, as settings of `[evaluate]`."""
    options: dict[str, Any] = {}
    for text in label.split("@")[1:]:
        try:
            options["threshold_scale"] = float(text)
        except ValueError:
            options["routing"] = text
    return options


def _check_experts(inspection: Inspection, found: Found) -> None:
    """Report an evaluation that was made with other experts or routers than those of its entry."""
    assert found.header is not None
    rules, run, stream = inspection.rules(found.label), inspection.run, inspection.settings.tasks
    if (found.after, found.task) not in rules.entries(stream, inspection.settings.unseen):
        what = f"method {rules.name} has no evaluation of {found.task} after {found.after} of these tasks"
        inspection.report(found.path, contradiction(found.path, what))
        return
    used = used_experts(rules, found, stream)
    names = {run.name_of(run.expert(name, rules.name)) for name in used}
    names |= {run.name_of(path) for name in used for path in routing_files(rules, run, name)}
    own = f"{DATA_PREFIX}{found.task}/{found.split}"
    if differing := sorted({*names, own} ^ set(found.header.inputs)):
        what = "its header names {}" if differing[0] in found.header.inputs else "its header does not name {}"
        inspection.report(found.path, contradiction(found.path, what.format(differing[0])))


def used_experts(rules: Method, found: Found, stream: tuple[str, ...]) -> tuple[str, ...]:
    """The tasks whose experts an evaluation may use: with routers those trained so far, else those that are active."""
    return tuple(experts_in_use(rules, stream[: found.after], found.task, chosen_routing(found)))
