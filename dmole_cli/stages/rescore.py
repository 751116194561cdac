"""Stage `rescore`: stored predictions scored by another metric; needs neither the model nor the task's data."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dmole_cli.artifacts.errors import DamagedArtifact
from dmole_cli.artifacts.evaluation import Answer, read_evaluation, write_evaluation
from dmole_cli.artifacts.files import digest_of_file
from dmole_cli.artifacts.headers import is_current
from dmole_cli.artifacts.kinds import EVALUATION
from dmole_cli.artifacts.listing import list_folder
from dmole_cli.artifacts.outcome import Outcome
from dmole_cli.artifacts.provenance import versions
from dmole_cli.artifacts.run import Run
from dmole_cli.errors import DmoleError
from dmole_cli.metrics.base import load_metric, score_answers
from dmole_cli.reports.evaluations import files_of


@dataclass(frozen=True)
class Stored:
    """A stored evaluation of a method (with its routing) on a task, after training on `after` tasks."""

    method: str
    after: int
    task: str
    path: Path


@dataclass(frozen=True)
class Wanted:
    """The evaluations to score again; None stands for all that are stored.

    Attributes:
        methods: folders of evaluations (`d-mole`, `d-mole@oracle`).
        after: numbers of trained tasks.
        tasks: names of tasks.
        diagonal: each task after its own training, too, whatever `after`.
        split: of the evaluations.
    """

    methods: Sequence[str] | None = None
    after: Collection[int] | None = None
    tasks: Collection[str] | None = None
    diagonal: bool = False
    split: str = "test"

    def has(self, stored: Stored, stream: Sequence[str]) -> bool:
        """Whether an evaluation is wanted."""
        own = self.diagonal and (stored.after, stored.task) in set(enumerate(stream, start=1))
        return (
            (self.methods is None or stored.method in self.methods)
            and (self.tasks is None or stored.task in self.tasks)
            and (self.after is None or stored.after in self.after or own)
        )


def rescore(metric: str, wanted: Wanted, *, stream: Sequence[str], run: Run, force: bool = False) -> list[Outcome]:
    """Score evaluations again; writes `rescored/<metric>/evaluations/<method>/<after>/<task>.parquet`.

    The originals are not changed. A new file has the same rows with other scores; its header names the original and its digest.

    Raises:
        DmoleError: no such metric; no such evaluation; the samples lack details that the metric needs.
    """
    load_metric(metric)
    chosen = [stored for stored in _stored(run, wanted.split) if wanted.has(stored, stream)]
    _require_all_named(run, chosen, wanted)
    return [_rescore(metric, stored, wanted.split, run=run, force=force) for stored in chosen]


def _stored(run: Run, split: str) -> Iterator[Stored]:
    for method in list_folder(run.evaluations(split)):
        if not method.is_file():
            for (after, task), path in files_of(method):
                yield Stored(method.name, after, task, path)


def _require_all_named(run: Run, chosen: list[Stored], wanted: Wanted) -> None:
    """Refuse a method or a task that was named and has no evaluation."""
    missing = [f"method {n}" for n in wanted.methods or () if n not in {stored.method for stored in chosen}]
    missing += [f"task {n}" for n in wanted.tasks or () if n not in {stored.task for stored in chosen}]
    if missing or not chosen:
        known = sorted({stored.method for stored in _stored(run, wanted.split)})
        raise DmoleError(
            f"no such evaluation in {run.evaluations(wanted.split)}" + (f": {', '.join(missing)}" if missing else ""),
            f"evaluated methods: {', '.join(known)}; see --method, --stage and --task"
            if known
            else "make evaluations first: dmole evaluate",
        )


def _rescore(metric: str, stored: Stored, split: str, *, run: Run, force: bool) -> Outcome:
    path = run.rescored(metric).evaluation(stored.method, stored.after, stored.task, split)
    rows, original = read_evaluation(stored.path)
    header = replace(
        original,
        settings={**original.settings, "metric": metric},
        # Inputs of the original stay: reports count the experts that the predictions needed.
        inputs={**original.inputs, run.name_of(stored.path): digest_of_file(stored.path)},
        versions=versions(),
        facts={},
    )
    facts = {"at_stage": stored.after}
    outcome = Outcome(f"rescore {stored.method}", stored.task, path, reads=(str(stored.path),), facts=facts)
    if is_current(path, EVALUATION, header, force=force):
        return outcome
    details = [json.loads(row.details) for row in rows]
    _require_details(metric, stored, rows, [set(detail) for detail in details])
    references = [row.references for row in rows]
    scores = score_answers(metric, [row.prediction for row in rows], references=references, details=details)
    scored = [replace(row, score=float(score)) for row, score in zip(rows, scores.samples, strict=True)]
    write_evaluation(path, scored, header.with_facts(**scores.facts))
    return outcome.wrote(**{metric: round(scores.points, 2), "samples": len(rows)})


def _require_details(metric: str, stored: Stored, rows: Sequence[Answer], found: Sequence[set[str]]) -> None:
    if not rows:
        raise DamagedArtifact(stored.path, f"{stored.path} has no sample")
    needed = set(load_metric(metric).NEEDS_DETAILS)
    for row, keys in zip(rows, found, strict=True):
        if missing := sorted(needed - keys):
            raise DmoleError(
                f"metric {metric} needs {', '.join(missing)} of every sample; sample {row.sample_id} of {stored.path} has none",
                "select the tasks that it fits with --task",
            )
