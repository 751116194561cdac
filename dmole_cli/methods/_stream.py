"""Whether an expert was trained within the configured stream, and not after other tasks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from dmole_cli.artifacts.bundle import is_from_bundle
from dmole_cli.artifacts.errors import StaleArtifact
from dmole_cli.artifacts.expert import is_imported
from dmole_cli.artifacts.files import digest_of_file
from dmole_cli.artifacts.headers import header_of
from dmole_cli.artifacts.kinds import EXPERT, FEATURES, MEMORY
from dmole_cli.artifacts.provenance import DATA_PREFIX, Header
from dmole_cli.artifacts.run import Run
from dmole_cli.methods.base import Method, TaskContext
from dmole_cli.settings.model import Settings


def require_stream(rules: Method, settings: Settings, run: Run, tasks: Iterable[str]) -> None:
    """Refuse experts whose training has read the data, experts or memories of other tasks than it would read now.

    Settings, data and digests are compared elsewhere; this finds an expert that an order, an earlier task or a missing earlier
    task of another stream has shaped. Experts that were imported or do not exist are skipped. Tasks that were removed from the
    stream since (`removed` of the settings) are no difference: what was trained after them is still valid.

    Raises:
        StaleArtifact: names both sets of tasks.
    """
    trained = set(rules.trained_tasks(settings.tasks))
    for task in (task for task in tasks if task in trained):
        path = run.expert(task, rules.name)
        made = header_of(path, EXPERT)
        if made is None or is_imported(made) or is_from_bundle(run, path):
            continue
        before = _tasks_of(run, made.inputs) - set(settings.removed)
        now = _tasks_of(run, _inputs(rules, settings, run, task))
        if before - {task} != now - {task}:
            # Sorted by the stream, so that two orders are told apart by what came before.
            listed = [", ".join(sorted(found - {task})) or "no other task" for found in (before, now)]
            raise StaleArtifact(
                path, f"it was trained after {listed[0]}, but `tasks` of the configuration has {listed[1]} before it"
            )


def with_removed_inputs(header: Header, settings: Settings, run: Run, path: Path) -> Header:
    """The header of an expert as its training would write it if removed tasks were still in the stream.

    What the existing expert was made from and belongs to a removed task is added, and the features of its own task, which the
    first task of a stream does not read.

    Args:
        header: that a training would write now.
        settings: with the stream.
        run: the run directory.
        path: the expert.

    Raises:
        ArtifactError: the expert is damaged.
    """
    made = header_of(path, EXPERT) if settings.removed else None
    inputs: dict[str, str] = {}
    for name, digest in made.inputs.items() if made is not None else ():
        found = None if name.startswith(DATA_PREFIX) else run.identify(run.path_of(name))
        if found is None or name in header.inputs:
            continue
        if found[1]["task"] in settings.removed:
            inputs[name] = digest
        elif found[0] is FEATURES and found[1]["task"] == path.stem:
            source = run.path_of(name)
            inputs[name] = digest_of_file(source) if source.is_file() else digest
    return replace(header, inputs={**inputs, **header.inputs})


def _inputs(rules: Method, settings: Settings, run: Run, task: str) -> list[str]:
    """The names in headers of what the training of a task would read now."""
    context = TaskContext(rules, run, settings, rules.option_values(settings), task)
    shares = rules.data_shares(settings.tasks, task, context.options)
    previous = rules.previous_task(settings.tasks, task)
    experts = [run.expert(previous, rules.name)] if previous is not None else []
    return [*(f"{DATA_PREFIX}{name}/train" for name in shares), *map(run.name_of, [*rules.inputs(context), *experts])]


def _tasks_of(run: Run, names: Iterable[str]) -> set[str]:
    """The tasks whose data, experts or memories have these names."""
    found = {name.removeprefix(DATA_PREFIX).rpartition("/")[0] for name in names if name.startswith(DATA_PREFIX)}
    for name in names:
        kind = None if name.startswith(DATA_PREFIX) else run.identify(run.path_of(name))
        if kind is not None and kind[0] in (EXPERT, MEMORY, FEATURES):
            found.add(kind[1]["task"])
    return found
