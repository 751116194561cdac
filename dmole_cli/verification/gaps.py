"""Entries of the score matrix that are missing although others of the same evaluation exist."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from dmole_cli.artifacts.errors import MissingArtifact
from dmole_cli.artifacts.kinds import EVALUATION, EXPERT, LIKELIHOOD, RESCORED, Kind
from dmole_cli.methods.base import Entry, Method
from dmole_cli.verification.inspection import Found, Inspection

MATRICES = (EVALUATION, LIKELIHOOD, RESCORED)


def check_gaps(inspection: Inspection) -> None:
    """Report files that are missing: memories of experts, and entries of a score matrix that has others of their row."""
    groups: dict[tuple[Kind, str, str, str], list[Found]] = {}
    for found in list(inspection.found.values()):
        if not inspection.is_known(found):
            continue
        if found.kind in MATRICES:
            groups.setdefault((found.kind, found.label, found.split, found.values.get("metric", "")), []).append(found)
        elif found.kind is EXPERT and inspection.rules(found.label).has_memory:
            path = inspection.run.memory(found.task, found.label)
            if not path.exists():
                inspection.report(path, MissingArtifact(path, f"it is written with {found.path}"))
    for (kind, label, split, metric), present in groups.items():
        for after, task in _missing(inspection, kind, label, split, metric, present):
            values = {"method": label, "after": str(after), "task": task, "split": split, "metric": metric}
            path = inspection.run.path(kind, **values)
            inspection.report(path, MissingArtifact(path, "others of this evaluation exist"))


def _missing(
    inspection: Inspection, kind: Kind, label: str, split: str, metric: str, present: Sequence[Found]
) -> Iterator[Entry]:
    rules, settings = inspection.rules(label), inspection.settings
    entries = {(found.after, found.task) for found in present}
    tasks = {task for _, task in entries} | set(_evaluated(inspection, kind, label, split))
    wanted = rules.entries(settings.tasks, settings.unseen)
    if kind is RESCORED:
        # Scored again is what was chosen, of what there is.
        tasks = {f.task for f in inspection.found.values() if f.kind is kind and f.values["metric"] == metric}
        wanted = [entry for entry in wanted if inspection.run.evaluation(label, entry[0], entry[1], split).exists()]
    for after, task in wanted:
        if (after, task) in entries or task not in tasks:
            continue
        # A task without any entry has lost its last one: even where the diagonal alone was chosen, each has its own.
        lost = not any(name == task for _, name in entries) and any(number == after for number, _ in entries)
        if lost or _row_is_there(rules, settings.tasks, entries, after):
            yield after, task


def _row_is_there(rules: Method, stream: Sequence[str], entries: set[Entry], after: int) -> bool:
    """Whether the entries after so many tasks were evaluated; an entry of the diagonal alone may have been chosen alone."""
    if rules.protocol == "per-task":
        return True
    row = {task for number, task in entries if number == after}
    diagonal = {stream[after - 1]} if 0 < after <= len(stream) else set()
    return bool(row - diagonal) or (bool(row) and any(number == 0 for number, _ in entries))


def _evaluated(inspection: Inspection, kind: Kind, label: str, split: str) -> Iterator[str]:
    """The tasks of which costs say that they were evaluated: a method that has a single row has no other trace of them."""
    if kind is EVALUATION:
        stage = "-".join(["evaluate", *([] if split == "test" else [split]), label])
        folder: Path = inspection.run.cost(stage, "task").parent
        yield from (path.stem for path in folder.glob("*.json"))
