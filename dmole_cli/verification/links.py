"""The links of the chain: an artifact and what its header says it was made from."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from dmole_cli.artifacts.bundle import is_from_bundle
from dmole_cli.artifacts.errors import DamagedArtifact, MissingArtifact, OtherBackbone, StaleArtifact
from dmole_cli.artifacts.expert import is_imported
from dmole_cli.artifacts.files import digest_of_file
from dmole_cli.artifacts.kinds import (
    EVALUATION,
    EXPERT,
    FEATURES,
    LIKELIHOOD,
    MEMORY,
    PROFILE,
    ROUTER,
    TRAINING_LOG,
    Kind,
)
from dmole_cli.artifacts.labels import base_method
from dmole_cli.artifacts.provenance import DATA_PREFIX, Header, differences
from dmole_cli.artifacts.staleness import require_backbone
from dmole_cli.errors import DmoleError
from dmole_cli.methods._stream import require_stream
from dmole_cli.verification.inspection import Found, Inspection, is_artifact

# Kinds whose maker reads a split of the task, by the name of the split; None for the split of the artifact.
OWN_DATA: dict[Kind, str | None] = {
    PROFILE: "train", ROUTER: "train", FEATURES: None, EVALUATION: None, LIKELIHOOD: None,
}  # fmt: skip


def check_links(inspection: Inspection, found: Found) -> None:
    """Report an artifact of an unknown task or method, of another backbone, or whose inputs are missing or have changed."""
    if found.header is None:
        return
    if not _known(inspection, found):
        return
    if found.kind is TRAINING_LOG and not inspection.run.expert(found.task, found.label).exists():
        return  # figures of an expert that was deleted, or of a training that was killed at its end
    if (header := found.header).backbone or header.inputs:
        try:
            require_backbone(found.path, header, inspection.fingerprint)
        except OtherBackbone as error:
            inspection.report(found.path, error)
    if is_from_bundle(inspection.run, found.path):
        return  # what it was made from is elsewhere
    for name, digest in sorted(header.inputs.items()):
        if name.startswith(DATA_PREFIX):
            _check_data(inspection, found, name, digest)
        elif is_artifact(name):
            _check_source(inspection, found, name, digest)
    _check_own_data(inspection, found)
    if found.kind in (MEMORY, TRAINING_LOG):
        _check_same_training(inspection, found, header)
    if found.kind is EXPERT:
        try:
            require_stream(inspection.rules(found.label), inspection.settings, inspection.run, [found.task])
        except DmoleError as error:  # also damaged inputs, which have been reported
            if isinstance(error, StaleArtifact):
                inspection.report(found.path, error)
    if found.kind is ROUTER and not (features := inspection.run.features(found.task)).exists():
        inspection.report(features, MissingArtifact(features, f"{found.path} was trained on it"))


def _known(inspection: Inspection, found: Found) -> bool:
    if inspection.is_known(found):
        return True
    if inspection.run.shared is not None and found.path.is_relative_to(inspection.run.shared):
        return False  # of another run that shares the folder
    if found.task not in inspection.tasks:
        message = f"{found.path} is of task {found.task}, which is not among the tasks of the run"
        hint = "add the task to `tasks` or `unseen` of the configuration, or move the file to another folder"
    else:
        message = f"{found.path} is of method {base_method(found.label)}, which dmole does not have"
        hint = "move the file to another folder"
    inspection.report(found.path, DmoleError(message, hint))
    return False


def _check_data(inspection: Inspection, found: Found, name: str, digest: str) -> None:
    assert found.header is not None
    task, _, split = name.removeprefix(DATA_PREFIX).rpartition("/")
    try:
        now = inspection.data.digest(task, split)
    except DmoleError as error:
        message = f"{found.path} was made from the {split} split of task {task}, which cannot be read: {error.message}"
        inspection.report(found.path, DmoleError(message, error.hint or "restore the data of the task"))
        return
    if now != digest:
        change = f"the {split} split of task {task} has changed since it was made"
        inspection.report(found.path, StaleArtifact(found.path, change, imported=is_imported(found.header)))


def _check_source(inspection: Inspection, found: Found, name: str, digest: str) -> None:
    assert found.header is not None
    source = inspection.run.path_of(name)
    identified = inspection.run.identify(source)
    if not source.is_file() and identified is not None and identified[1]["task"] in inspection.settings.removed:
        source = inspection.run.removed(identified[1]["task"]).path_of(name)
        if not source.is_file():
            return  # the files of a removed task may be deleted
    if not source.is_file():
        inspection.report(source, MissingArtifact(source, f"{found.path} was made from it"))
    elif digest_of_file(source) != digest:
        change, imported = f"{source} has changed since it was made", is_imported(found.header)
        inspection.report(found.path, StaleArtifact(found.path, change, imported=imported, source=source))


def _check_own_data(inspection: Inspection, found: Found) -> None:
    """Report an artifact whose header does not name the data of its own task."""
    assert found.header is not None
    if found.kind in OWN_DATA:
        wanted = f"{DATA_PREFIX}{found.task}/{OWN_DATA[found.kind] or found.split}"
        if wanted not in found.header.inputs:
            inspection.report(found.path, contradiction(found.path, f"its header does not name {wanted}"))


def _check_same_training(inspection: Inspection, found: Found, header: Header) -> None:
    """Report a memory or figures of training steps that another training than the expert's has written."""
    path = inspection.run.expert(found.task, found.label)
    expert = inspection.found.get(path)
    if expert is None or expert.header is None:
        if not path.exists() and found.kind is MEMORY:
            inspection.report(path, MissingArtifact(path, f"{found.path} was written with it"))
    elif changed := differences(header, expert.header):
        what = f"it is not of the training that made {path}: {'; '.join(changed)}"
        # Figures have no command of their own: the training writes them.
        wrong = path if found.kind is TRAINING_LOG else found.path
        inspection.report(found.path, contradiction(wrong, f"{found.path}: {what}"))


def contradiction(path: Path, what: str) -> DamagedArtifact:
    """The error for an artifact that does not follow from what it was made from."""
    return DamagedArtifact(path, what if what.startswith(str(path)) else f"{path} is wrong: {what}")


def upstream(inspection: Inspection, paths: Iterable[Path]) -> list[Path]:
    """These artifacts and all that they were made from, sources first, each once."""
    ordered: dict[Path, None] = {}

    def visit(path: Path, visiting: frozenset[Path]) -> None:
        if path in ordered or path in visiting:
            return
        for source in inspection.sources(path):
            visit(source, visiting | {path})
        ordered[path] = None

    for path in paths:
        visit(path, frozenset())
    return list(ordered)
