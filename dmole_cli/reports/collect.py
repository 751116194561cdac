"""Evaluation files -> one report per method: scores across tasks, not the scores of one task's answers (`metrics`).

Beside them, the seconds that the stages took. Everything here only reads.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from types import ModuleType
from typing import Any

from dmole_cli import catalog
from dmole_cli.artifacts.costs import read_cost
from dmole_cli.artifacts.evaluation import Answer, read_evaluation
from dmole_cli.artifacts.headers import header_of
from dmole_cli.artifacts.kinds import EXPERT
from dmole_cli.artifacts.likelihood import read_likelihood
from dmole_cli.artifacts.run import D_MOLE, Run
from dmole_cli.artifacts.tensors import count_elements
from dmole_cli.errors import DmoleError
from dmole_cli.reports.continual import FORMULAS, Cell, Matrix, continual_scores

# Three methods are no walk through the stream, so their files are read differently: one has stage 0 alone, one a
# single cell per task, one the last stage alone.
ZERO_SHOT, FINETUNE, JOINT = "zero-shot", "finetune", "joint"

# Metrics whose points may exceed `CEILING`, so that one task could outweigh all others in a mean.
UNBOUNDED = frozenset({"cider"})
CEILING = 100.0

# In the order of the JSON report.
QUANTITIES = ("last", "avg", "bwt", "forgetting", "fwt")

# Folders of what has to be kept to answer.
STORED = ("experts", "routers")
# What likelihoods say of a task, each in the mean over its samples; to be printed under their table.
KNOWLEDGE = {
    "log_likelihood": "log-likelihood of the reference answer, its end included, per token; the best of several references",
    "ranked_first": "samples whose right answer is more probable than every other possible one, in points",
}

# The stages whose costs are compared, by their folders' names.
PROFILING, TRAINING = "profile", f"train-task-{D_MOLE}"


@dataclass(frozen=True)
class MethodReport:
    """What a method's evaluation files say, in points (score x the metric's UNIT_SCALE; CIDEr 1.0 is 100 points).

    Attributes:
        method: its name.
        tasks: the stream, in order.
        metrics: task -> metric, None where the task was never evaluated; unseen tasks are in here too.
        stages: those with at least one score, 0 (the pretrained backbone) to T.
        matrix: R[stage][task], T + 1 rows of T cells, None where nothing was evaluated; never capped.
        quantities: name (a key of `FORMULAS`) -> a value per task, computed from `matrix`.
        mean: name -> mean over tasks with every cell of the matrix capped at `CEILING` first, CIDEr included.
        mean_without_cider: name -> mean over the tasks whose metric has an upper bound.
        routing: task -> share (0..1) of its samples whose active experts include its own at stage T; None where
            the method does not route or the stage is missing.
        unseen: task outside the stream -> `zero_shot` (R[0]), `last` (R[T]) and `no_expert`, the share (0..1) of its
            samples that activate no expert at stage T.
        trainable_parameters: the most that any of the method's stages trained; None where no expert file is there.
        stored_parameters: numbers in the files that answers after stage T need (experts, routers; for a method that trains
            each task alone, those of all tasks) and in what it remembers for a next task; None where one is missing.
        knowledge: task -> name -> value, from the likelihoods of the reference answers: `log_likelihood_learnt` at R[i,i],
            `log_likelihood_last` at R[T,i] and `likelihood_forgetting`, the first less the second, in nats per token;
            `ranked_first_learnt`, `ranked_first_last` and `ranked_forgetting` in points, None for an open task, too.
        further: task -> what its metric says beside its score (`mean_iou`) -> name (a key of `FORMULAS`) -> value in points;
            only tasks that have something of the kind.
    """

    method: str
    tasks: tuple[str, ...]
    metrics: Mapping[str, str | None]
    stages: tuple[int, ...]
    matrix: Matrix
    quantities: Mapping[str, tuple[Cell, ...]]
    mean: Mapping[str, Cell]
    mean_without_cider: Mapping[str, Cell]
    routing: Mapping[str, Cell]
    unseen: Mapping[str, Mapping[str, Cell]]
    trainable_parameters: int | None
    stored_parameters: int | None
    knowledge: Mapping[str, Mapping[str, Cell]]
    further: Mapping[str, Mapping[str, Mapping[str, Cell]]]


@dataclass(frozen=True)
class _Evaluated:
    """One evaluation file, boiled down: points, and the shares of samples that reached their own or no expert."""

    points: float
    further: Mapping[str, float]
    metric: str
    own_expert: Cell
    no_expert: Cell
    backbone: str
    inputs: tuple[str, ...]
    path: Path


@dataclass(frozen=True)
class _Scored:
    """One file of likelihoods, boiled down: their mean, and the points of right answers that rank first."""

    log_likelihood: float
    ranked_first: Cell
    backbone: str
    path: Path


# (stage, task) -> what was read.
_Cells = Mapping[tuple[int, str], _Evaluated]
_Likelihoods = Mapping[tuple[int, str], _Scored]


def collect(
    run: Run,
    *,
    tasks: Sequence[str],
    methods: Sequence[str] | None = None,
    split: str = "test",
    rescored: Sequence[str] = (),
) -> list[MethodReport]:
    """Read `evaluations/<method>/<stage>/<task>.parquet` and `likelihoods/...` into one report per method.

    Stage 0 is the pretrained backbone whatever the method, so a method that keeps no file of it shows zero-shot's.

    Args:
        run: the run directory.
        tasks: the stream, in order; every other task that has files is reported as unseen.
        methods: those to report, in this order, also where nothing is on disk; by default what is there, the main
            method last.
        split: whose evaluations are read.
        rescored: metrics; what was scored again by one of them is read in place of the original.

    Raises:
        DmoleError: nothing, or the same cell twice, was scored again by these metrics; a file is damaged or names no metric; a
            task was scored with two metrics; or there are files of two backbones, which no table may put side by side.
    """
    chosen = methods_on_disk(run, split) if methods is None else list(methods)
    cells = {method: _read_cells(run, method, split) for method in {*chosen, ZERO_SHOT}}
    for method, place, cell in _read_rescored(run, cells, split, rescored):
        cells[method][place] = cell
    scored = {method: _read_likelihoods(run, method, split) for method in {*chosen, ZERO_SHOT}}
    evaluated = [cell for found in cells.values() for cell in found.items()]
    _same_backbone([*(cell for _, cell in evaluated), *(cell for found in scored.values() for cell in found.values())])
    metrics = _agreed_metrics(evaluated)
    return [_report(run, method, tuple(tasks), cells, scored, metrics) for method in chosen]


def methods_on_disk(run: Run, split: str = "test") -> list[str]:
    """List the methods that have an evaluation folder: bounds first, the main method last, others by name between."""
    folder = run.evaluations(split)
    found = {path.name for path in folder.iterdir() if path.is_dir()} if folder.is_dir() else set()
    first = [method for method in (ZERO_SHOT, FINETUNE, JOINT) if method in found]
    last = [method for method in (D_MOLE,) if method in found]
    return [*first, *sorted(found - {*first, *last}), *last]


def as_json(reports: Sequence[MethodReport]) -> list[dict[str, Any]]:
    """Turn reports into JSON values, an object per method; what is missing is None (null)."""
    return [
        {
            "method": report.method,
            "stages": list(report.stages),
            "tasks": {
                task: {name: report.quantities[name][index] for name in QUANTITIES}
                | {"metric": report.metrics.get(task)}
                for index, task in enumerate(report.tasks)
            },
            "mean": {name: report.mean[name] for name in QUANTITIES},
            "mean_without_cider": {name: report.mean_without_cider[name] for name in QUANTITIES},
            "trainable_parameters": report.trainable_parameters,
            "stored_parameters": report.stored_parameters,
            "routing": dict(report.routing),
            "unseen": {task: dict(values) for task, values in report.unseen.items()},
            "knowledge": {task: dict(values) for task, values in report.knowledge.items()},
            "further": {
                task: {name: {key: values[key] for key in QUANTITIES} for name, values in found.items()}
                for task, found in report.further.items()
            },
        }
        for report in reports
    ]


def cost_rows(run: Run) -> list[dict[str, Any]]:
    """Read `costs/<stage>/<task>.json` and total the seconds per stage, stages by name, as JSON values.

    What several runs share was paid once and stands in the costs of each.

    A row holds `stage`, `tasks` {task: seconds}, `seconds`, their sum, and `counts`, what the backbone computed over all.

    Raises:
        DmoleError: a file is not what a stage writes.
    """
    folders = {run.cost(stage, "task").parents[1] for stage in (PROFILING, TRAINING)}
    stages = sorted(
        (path for folder in folders if folder.is_dir() for path in folder.iterdir() if path.is_dir()),
        key=lambda path: path.name,
    )
    return [row for stage in stages if (row := _cost_row(stage))["tasks"]]


def profiling_share(run: Run) -> float | None:
    """Seconds of profiling over those of training, as a share (0.02 is 2 %); see `share_of_profiling`."""
    return share_of_profiling(cost_rows(run))


def share_of_profiling(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Profiling's seconds over training's, counting the tasks that have both; None where no task has."""
    by_stage = {row["stage"]: row["tasks"] for row in rows}
    profiled, trained = by_stage.get(PROFILING, {}), by_stage.get(TRAINING, {})
    both = profiled.keys() & trained.keys()
    training = sum(trained[task] for task in both)
    return sum(profiled[task] for task in both) / training if training > 0 else None


def _report(
    run: Run,
    method: str,
    tasks: tuple[str, ...],
    cells: Mapping[str, _Cells],
    scored: Mapping[str, _Likelihoods],
    metrics: Mapping[str, str],
) -> MethodReport:
    own, last_stage = cells[method], len(tasks)
    # A method trained anew for each task never sees the backbone as a stage of its own.
    backbone = {} if method == FINETUNE else {key: cell for key, cell in cells[ZERO_SHOT].items() if key[0] == 0}
    known: _Cells = {**backbone, **own}
    matrix = _matrix(method, {place: cell.points for place, cell in known.items()}, tasks)
    quantities, mean = _quantities(method, matrix)
    bounded = [column for column, task in enumerate(tasks) if metrics.get(task) not in UNBOUNDED]
    outside = sorted({task for _, task in own} - set(tasks))
    after = 0 if method == ZERO_SHOT else last_stage
    return MethodReport(
        method=method,
        tasks=tasks,
        metrics={task: metrics.get(task) for task in (*tasks, *outside)},
        stages=tuple(sorted({stage for stage, task in known if task in tasks and stage <= last_stage})),
        matrix=matrix,
        quantities=quantities,
        mean=mean,
        mean_without_cider=_quantities(method, matrix, columns=bounded)[1],
        routing={task: cell.own_expert if (cell := own.get((after, task))) else None for task in tasks},
        unseen={task: _unseen(known.get((0, task)), own.get((after, task))) for task in outside},
        trainable_parameters=_trainable_parameters(run, base_method(method)),
        stored_parameters=_stored_parameters(run, base_method(method), tasks, own),
        knowledge=_knowledge(method, scored[method], tasks),
        further=_further(method, known, tasks),
    )


def _further(method: str, cells: _Cells, tasks: Sequence[str]) -> dict[str, dict[str, dict[str, Cell]]]:
    """What metrics say beside the score, task by task, in the same quantities as the score."""
    out: dict[str, dict[str, dict[str, Cell]]] = {}
    for column, task in enumerate(tasks):
        names = dict.fromkeys(name for (_, other), cell in cells.items() if other == task for name in cell.further)
        for name in names:
            values = {place: cell.further.get(name) for place, cell in cells.items() if place[1] == task}
            quantities, _ = _quantities(method, _matrix(method, values, tasks))
            out.setdefault(task, {})[name] = {key: found[column] for key, found in quantities.items()}
    return out


def _matrix(method: str, cells: Mapping[tuple[int, str], Cell], tasks: Sequence[str]) -> Matrix:
    """R[stage][task]; the pretrained backbone stays the pretrained backbone at every stage."""
    stages = range(len(tasks) + 1)
    sources = [0 for _ in stages] if method == ZERO_SHOT else list(stages)
    return [[cells.get((stage, task)) for task in tasks] for stage in sources]


def _knowledge(method: str, cells: _Likelihoods, tasks: Sequence[str]) -> dict[str, dict[str, Cell]]:
    """What was known of each task when it was learnt and at the end, and the difference."""
    out: dict[str, dict[str, Cell]] = {task: {} for task in tasks}
    for name, lost in (("log_likelihood", "likelihood_forgetting"), ("ranked_first", "ranked_forgetting")):
        matrix = _matrix(method, {place: getattr(cell, name) for place, cell in cells.items()}, tasks)
        for column, task in enumerate(tasks):
            learnt = matrix[column + 1][column]
            # Each task alone has no later stage to forget it in.
            last = None if method == FINETUNE else matrix[-1][column]
            difference = None if learnt is None or last is None else learnt - last
            out[task] |= {f"{name}_learnt": learnt, f"{name}_last": last, lost: difference}
    return out


def _quantities(
    method: str, matrix: Matrix, *, columns: Sequence[int] | None = None
) -> tuple[dict[str, tuple[Cell, ...]], dict[str, Cell]]:
    """Quantities per task from the scores as they are, and their means over `columns` from the capped scores.

    The cap belongs to the cells: a difference of two scores above it is 0 in the mean of BWT, as it must be when both
    count as full marks, whereas capping a task's Last alone would leave its BWT on another scale than its Last.
    """
    if method == FINETUNE:
        matrix = _only_diagonal(matrix)
    capped = [[None if cell is None else min(cell, CEILING) for cell in row] for row in matrix]
    scores, mean = continual_scores(matrix), continual_scores(capped, columns=columns).mean
    # Each task alone has no later stage to forget it in and no earlier one to help it.
    meant = {"last"} if method == FINETUNE else set(FORMULAS)
    nothing: tuple[Cell, ...] = (None,) * len(scores.last)
    by_task = {name: getattr(scores, name) if name in meant else nothing for name in FORMULAS}
    return by_task, {name: mean[name] if name in meant else None for name in FORMULAS}


def _only_diagonal(matrix: Matrix) -> Matrix:
    """Put R[i,i] of every task into the last row, and nothing elsewhere."""
    tasks = len(matrix) - 1
    empty: list[Cell] = [None] * tasks
    return [*([empty] * tasks), [matrix[task + 1][task] for task in range(tasks)]]


def _unseen(before: _Evaluated | None, after: _Evaluated | None) -> dict[str, Cell]:
    return {
        "zero_shot": before.points if before else None,
        "last": after.points if after else None,
        "no_expert": after.no_expert if after else None,
    }


def _trainable_parameters(run: Run, method: str) -> int | None:
    if method == ZERO_SHOT:
        return 0
    files = sorted(run.expert("task", method).parent.glob("*.safetensors"))
    found = [header.facts["parameters"] for path in files if (header := header_of(path, EXPERT))]
    return max(found, default=None)


def _stored_parameters(run: Run, method: str, tasks: Sequence[str], cells: _Cells) -> int | None:
    """Every file counts once, however many tasks are answered with it."""
    whole = method in (ZERO_SHOT, FINETUNE)
    last = {task: cell for (stage, task), cell in cells.items() if whole or stage == len(tasks)}
    if not last.keys() >= set(tasks):
        return None
    names = {name for cell in last.values() for name in cell.inputs if name.partition("/")[0] in STORED}
    memory = run.memory(tasks[-1], method)
    paths = [*map(run.path_of, sorted(names)), *([memory] if memory.exists() else [])]
    return sum(map(count_elements, paths)) if all(path.exists() for path in paths) else None


def base_method(label: str) -> str:
    """The method whose experts evaluations of this name used: `d-mole@oracle` are d-mole's under another routing."""
    return label.partition("@")[0]


def _read_cells(run: Run, method: str, split: str) -> dict[tuple[int, str], _Evaluated]:
    return {place: _read_cell(file, split) for place, file in _files(run.evaluations(split) / method)}


def _read_rescored(
    run: Run, cells: Mapping[str, _Cells], split: str, metrics: Sequence[str]
) -> Iterator[tuple[str, tuple[int, str], _Evaluated]]:
    """(method, (stage, task), cell) of what was scored again."""
    first: dict[tuple[str, tuple[int, str]], _Evaluated] = {}
    for metric in metrics:
        here = {method: _files(run.rescored(metric).evaluations(split) / method) for method in cells}
        if not any(here.values()):
            raise DmoleError(
                f"no evaluation was scored again by {metric} in {run.root}",
                f"dmole evaluate --rescore {metric} --task TASK scores what is there",
            )
        for method, files in here.items():
            for place, file in files:
                cell = _read_cell(file, split, command=f"{_maker(file, split)} --rescore {metric}")
                known = first.setdefault((method, place), cell)
                if known is not cell:
                    raise DmoleError(
                        f"{known.path} and {file} score the same answers", "name one --rescore for each task"
                    )
                yield method, place, cell


def _read_likelihoods(run: Run, method: str, split: str) -> dict[tuple[int, str], _Scored]:
    return {place: _read_scored(file, split) for place, file in _files(run.likelihoods(split) / method)}


def _files(folder: Path) -> list[tuple[tuple[int, str], Path]]:
    """((stage, task), file) of every file of a method."""
    stages = [path for path in folder.glob("*") if path.name.isdecimal()]
    files = [file for stage in sorted(stages) for file in sorted(stage.glob("*.parquet"))]
    return [((int(file.parent.name), file.stem), file) for file in files]


def _maker(path: Path, split: str) -> str:
    """The command that makes a file of a cell."""
    label = path.parts[-3]
    routing = [
        f" --threshold-scale {part}" if part[0].isdecimal() else f" --routing {part}" for part in label.split("@")[1:]
    ]
    command = (
        f"dmole evaluate --method {base_method(label)}{''.join(routing)} --stage {path.parts[-2]} --task {path.stem}"
    )
    return command + ("" if split == "test" else f" --split {split}")


def _read_scored(path: Path, split: str) -> _Scored:
    mend = f"{_maker(path, split)} --likelihood --force makes it again"
    rows, header = read_likelihood(path)
    if not rows:
        raise DmoleError(f"{path} holds no sample", mend)
    ranked = [row.ranked_first for row in rows if row.ranked_first is not None]
    points = 100 * fmean(ranked) if ranked else None
    return _Scored(fmean(row.log_likelihood for row in rows), points, header.backbone, path)


def _read_cell(path: Path, split: str, *, command: str = "") -> _Evaluated:
    command = command or _maker(path, split)
    rows, header = read_evaluation(path)
    metric = header.settings.get("metric")
    if not isinstance(metric, str) or not rows:
        problem = "holds no sample" if isinstance(metric, str) else "does not name its metric"
        raise DmoleError(f"{path} {problem}", f"{command} --force makes it again")
    own_expert, no_expert = _routed(rows, path.stem)
    module = catalog.load("metrics", metric)
    points = module.UNIT_SCALE * header.facts.get("corpus", fmean(row.score for row in rows))
    further = _beside_the_score(module, rows)
    return _Evaluated(points, further, metric, own_expert, no_expert, header.backbone, tuple(header.inputs), path)


def _beside_the_score(module: ModuleType, rows: Sequence[Answer]) -> dict[str, float]:
    """Name -> points of what a metric says beside the score; nothing for most."""
    names = getattr(module, "FURTHER", {})
    predictions = [row.prediction for row in rows]
    details = [json.loads(row.details) for row in rows] if names else []
    return {name: module.UNIT_SCALE * fmean(values(predictions, details=details)) for name, values in names.items()}


def _routed(rows: Sequence[Answer], task: str) -> tuple[Cell, Cell]:
    """Shares of the samples that reached their own task's expert, and none; None where no router was asked."""
    if not any(row.losses for row in rows):
        return None, None
    return fmean(task in row.active for row in rows), fmean(not row.active for row in rows)


def _agreed_metrics(cells: Sequence[tuple[tuple[int, str], _Evaluated]]) -> dict[str, str]:
    """Task -> metric, once it is sure that all files can stand in one table."""
    first: dict[str, _Evaluated] = {}
    for (_, task), cell in cells:
        known = first.setdefault(task, cell)
        if cell.metric != known.metric:
            raise DmoleError(
                f"{cell.path} was scored with {cell.metric}, {known.path} with {known.metric}",
                f"dmole evaluate --task {task} --force scores both with the metric of the task's card, "
                f"dmole evaluate --task {task} --rescore {cell.metric} everything that is there with {cell.metric}",
            )
    return {task: cell.metric for task, cell in first.items()}


def _same_backbone(cells: Sequence[_Evaluated | _Scored]) -> None:
    for other in cells:
        if (first := cells[0]).backbone != other.backbone:
            raise DmoleError(
                f"{first.path} and {other.path} were made with two backbones "
                f"({first.backbone[:12] or 'unnamed'} and {other.backbone[:12] or 'unnamed'})",
                "evaluate again with --force, or pass another --run for the second backbone",
            )


def _cost_row(folder: Path) -> dict[str, Any]:
    costs = {path.stem: read_cost(path) for path in sorted(folder.glob("*.json"))}
    seconds = {task: cost["seconds"] for task, cost in costs.items()}
    counts = sum((Counter(cost["counts"]) for cost in costs.values()), Counter())
    return {"stage": folder.name, "tasks": seconds, "seconds": sum(seconds.values()), "counts": dict(counts)}
