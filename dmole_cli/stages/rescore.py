"""`evaluate --rescore`: old evaluations scored again by another metric, from the answers that they hold; needs no model."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dmole_cli.artifacts.evaluation import Answer, evaluation_header, read_evaluation, write_evaluation
from dmole_cli.artifacts.outcome import Outcome
from dmole_cli.artifacts.provenance import up_to_date, versions
from dmole_cli.errors import DmoleError
from dmole_cli.metrics.base import load_metric, score_answers
from dmole_cli.session import Session


@dataclass(frozen=True)
class Cell:
    """An evaluation that is there: of which method (and routing), after which stage, of which task."""

    method: str
    stage: int
    task: str
    path: Path


def rescore(
    session: Session,
    metric: str,
    *,
    methods: Sequence[str] | None = None,
    stages: Collection[int] | None = None,
    tasks: Collection[str] | None = None,
    diagonal: bool = False,
    force: bool = False,
) -> list[Outcome]:
    """Score evaluations again; writes `rescored/<metric>/evaluations/<method>/<stage>/<task>.parquet`.

    The originals stay as they are. A new file holds the same rows with another score; its header names the file that it
    was made from, with its digest.

    Args:
        session: configuration and run directory.
        metric: a file of `metrics/`.
        methods: folders of the evaluations (`d-mole`, `d-mole@oracle`), None = those there.
        stages: which stages, None = those there.
        tasks: which tasks, None = those there.
        diagonal: every task after its own training, too, whatever the stages.
        force: compute again what is there.

    Raises:
        DmoleError: no such metric; no evaluation of that kind; the samples lack what the metric needs.
    """
    load_metric(metric)
    learnt = set(enumerate(session.config.tasks, start=1))
    cells = [
        cell
        for cell in _there(session)
        if (methods is None or cell.method in methods)
        and (tasks is None or cell.task in tasks)
        and (stages is None or cell.stage in stages or (diagonal and (cell.stage, cell.task) in learnt))
    ]
    _require_all_named(session, cells, methods or (), tasks or ())
    return [_rescore(session, metric, cell, force=force) for cell in cells]


def _there(session: Session) -> Iterator[Cell]:
    folder = session.run.evaluations(session.config.evaluate.split)
    for path in sorted(folder.glob("*/*/*.parquet")):
        if path.parent.name.isdecimal():
            yield Cell(path.parts[-3], int(path.parent.name), path.stem, path)


def _require_all_named(session: Session, cells: list[Cell], methods: Collection[str], tasks: Collection[str]) -> None:
    """Nothing that was asked for by its name may be passed over in silence."""
    folder = session.run.evaluations(session.config.evaluate.split)
    lacking = [f"method {name}" for name in methods if name not in {cell.method for cell in cells}]
    lacking += [f"task {name}" for name in tasks if name not in {cell.task for cell in cells}]
    if lacking or not cells:
        known = sorted({cell.method for cell in _there(session)})
        raise DmoleError(
            f"no such evaluation in {folder}" + (f": {', '.join(lacking)}" if lacking else ""),
            f"evaluated there: {', '.join(known)}; see --method, --stage and --task"
            if known
            else "`dmole evaluate` makes evaluations, which can be scored again then",
        )


def _rescore(session: Session, metric: str, cell: Cell, *, force: bool) -> Outcome:
    split = session.config.evaluate.split
    path = session.run.rescored(metric).evaluation(cell.method, cell.stage, cell.task, split)
    options = {} if split == "test" else {"split": split}
    rows, made_from = read_evaluation(cell.path, hint="make it again with `dmole evaluate --force`")
    source = session.digests(cell.path)
    header = replace(
        made_from,
        settings={**made_from.settings, "metric": metric},
        # What the original was made from stays in sight: reports count the experts that the answers took.
        inputs={**made_from.inputs, **source},
        versions=versions(),
        facts={},
    )
    redo = session.command("evaluate", cell.task, rescore=metric, method=cell.method, stage=cell.stage, **options)
    name = f"rescore {cell.method}"
    reads = (str(cell.path),)
    if up_to_date(path, evaluation_header(path), header, force=force, command=redo):
        return Outcome(name, cell.task, path, written=False, reads=reads, facts={"at_stage": cell.stage})
    details = [json.loads(row.details) for row in rows]
    _require_details(metric, cell, rows, [set(detail) for detail in details])
    scores = score_answers(
        metric, [row.prediction for row in rows], references=[row.references for row in rows], details=details
    )
    scored = [replace(row, score=float(score)) for row, score in zip(rows, scores.samples, strict=True)]
    write_evaluation(path, scored, replace(header, facts=scores.facts))
    facts = {"at_stage": cell.stage, metric: round(scores.points, 2), "samples": len(rows)}
    return Outcome(name, cell.task, path, written=True, reads=reads, facts=facts)


def _require_details(metric: str, cell: Cell, rows: Sequence[Answer], found: Sequence[set[str]]) -> None:
    if not rows:
        raise DmoleError(f"{cell.path} holds no sample", "make it again with `dmole evaluate --force`")
    needed = set(load_metric(metric).NEEDS_DETAILS)
    for row, keys in zip(rows, found, strict=True):
        if lacking := sorted(needed - keys):
            raise DmoleError(
                f"metric {metric} needs {', '.join(lacking)} of every sample, which sample {row.sample_id} of "
                f"{cell.path} does not have",
                "name the tasks that it fits with --task",
            )
