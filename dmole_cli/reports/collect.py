"""From a run directory to one report per method: scores across tasks, routing, likelihoods and parameters. Only reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dmole_cli.artifacts.headers import header_of
from dmole_cli.artifacts.kinds import EXPERT
from dmole_cli.artifacts.labels import base_method
from dmole_cli.artifacts.run import Run
from dmole_cli.artifacts.staleness import require_current
from dmole_cli.artifacts.tensors import count_elements
from dmole_cli.methods.base import Entry
from dmole_cli.metrics.base import load_metric
from dmole_cli.reports.continual import AVERAGES, FORMULAS, Matrix, Value, continual_scores
from dmole_cli.reports.evaluations import (
    Evaluated,
    Evaluations,
    Likelihoods,
    Likely,
    agreed_metrics,
    method_of,
    methods_on_disk,
    read_evaluations,
    read_likelihoods,
    read_rescored,
    require_one_backbone,
)
from dmole_cli.reports.stream import LeftOut, of_stream

# Means of scores cap every score at these points, so that a metric with a higher maximum (CIDEr) cannot outweigh all others.
# Differences (BWT, forgetting, FWT) are those of the uncapped scores: capped ones would hide what is lost above the cap.
CEILING = 100.0
DIFFERENCES = ("bwt", "forgetting", "fwt")

# In the order of the JSON report.
QUANTITIES = ("last", "avg", "bwt", "forgetting", "fwt")
MEANS = (*QUANTITIES, *AVERAGES)
SCORES = tuple(name for name in MEANS if name not in DIFFERENCES)

# Folders of the artifacts that are needed for evaluation.
STORED = ("experts", "routers", "memories")
# Values per task from likelihoods, each a mean over samples, with the explanation below their table.
KNOWLEDGE = {
    "log_likelihood": "log-likelihood of the reference answer, its end included, per token; the best of several references",
    "ranked_first": "samples whose right answer is more probable than every other possible one, in points",
}


@dataclass(frozen=True)
class MethodReport:
    """A method's evaluations, in points (score x the metric's UNIT_SCALE; CIDEr 1.0 is 100 points).

    Attributes:
        method: its name.
        tasks: the stream, in order.
        metrics: task -> metric, None where the task was never evaluated; unseen tasks included.
        stages: those with at least one score, 0 (the pretrained backbone) to T.
        matrix: R[stage][task], T + 1 rows of T entries, None where nothing was evaluated; never capped.
        quantities: name (a key of `FORMULAS`) -> a value per task, computed from `matrix`.
        mean: name (of `MEANS`) -> mean over tasks, with every score capped at `CEILING`, except in `DIFFERENCES`.
        mean_uncapped: name -> the same mean of the scores as they are.
        mean_of_bounded: name -> mean over the tasks whose metric cannot exceed `CEILING`.
        routing: task -> share (0..1) of its samples whose active experts include its own at stage T; None where
            the method has no routers or the stage is missing.
        unseen: task outside the stream -> `zero_shot` (R[0]), `last` (R[T]) and `no_expert`, the share (0..1) of its
            samples without an active expert at stage T.
        trainable_parameters: the largest number that one of the method's stages trained; None without an expert file.
        stored_parameters: numbers in the files that evaluation after stage T needs (experts, routers; with the "per-task"
            protocol those of all tasks) and in the method's memory for a next task; None where a file is missing.
        knowledge: task -> name -> value, from the likelihoods of the references: `log_likelihood_learnt` at R[i,i],
            `log_likelihood_last` at R[T,i] and `likelihood_forgetting`, the first minus the second, in nats per token;
            `ranked_first_learnt`, `ranked_first_last` and `ranked_forgetting` in points, None for an open task.
        further: task -> what its metric reports beside the score (`mean_iou`) -> name (a key of `FORMULAS`) -> value in
            points; only tasks whose metric reports something.
        left_out: files of evaluations and likelihoods of another stream; they are not used.
    """

    method: str
    tasks: tuple[str, ...]
    metrics: Mapping[str, str | None]
    stages: tuple[int, ...]
    matrix: Matrix
    quantities: Mapping[str, tuple[Value, ...]]
    mean: Mapping[str, Value]
    mean_uncapped: Mapping[str, Value]
    mean_of_bounded: Mapping[str, Value]
    routing: Mapping[str, Value]
    unseen: Mapping[str, Mapping[str, Value]]
    trainable_parameters: int | None
    stored_parameters: int | None
    knowledge: Mapping[str, Mapping[str, Value]]
    further: Mapping[str, Mapping[str, Mapping[str, Value]]]
    left_out: tuple[LeftOut, ...] = ()

    @property
    def is_bounded(self) -> bool:
        """Whether no metric of the stream can exceed `CEILING`, so that the means do not depend on the cap."""
        return all(_is_bounded(self.metrics.get(task)) for task in self.tasks)


def collect(
    run: Run,
    *,
    tasks: Sequence[str],
    methods: Sequence[str] | None = None,
    split: str = "test",
    rescored: Sequence[str] = (),
) -> list[MethodReport]:
    """Read `evaluations/<method>/<stage>/<task>.parquet` and `likelihoods/...` into one report per method.

    Only files of the configured stream are used: those whose header says that the first tasks of `tasks` had been learned.
    Stage 0 is the pretrained backbone for every method, so a method without evaluations of it gets those of a zero-shot method.

    Args:
        run: the run directory.
        tasks: the stream, in order; every other task that has files is reported as unseen.
        methods: those to report, in this order, also without any file; by default those on disk, the main method last.
        split: whose evaluations are read.
        rescored: metrics; evaluations scored again with one of them replace the originals.

    Raises:
        DmoleError: nothing, or the same evaluation twice, was scored again with these metrics; a file is damaged or names no
            metric; an expert or router that a file was made with has changed; a task was scored with two metrics; or the files
            are of two backbones.
    """
    on_disk = methods_on_disk(run, split)
    chosen = on_disk if methods is None else list(methods)
    zero_shot = [label for label in on_disk if method_of(label).protocol == "zero-shot"]
    labels = list(dict.fromkeys([*chosen, *zero_shot]))
    found = {label: read_evaluations(run, label, split) for label in labels}
    for label, entry, evaluated in read_rescored(run, labels, split, rescored):
        found[label][entry] = evaluated
    evaluations, likelihoods, left_out = {}, {}, {}
    for label in labels:
        evaluations[label], others = of_stream(label, found[label], tasks)
        likelihoods[label], more = of_stream(label, read_likelihoods(run, label, split), tasks)
        left_out[label] = (*others, *more)
    all_evaluations = [item for found in evaluations.values() for item in found.items()]
    all_likelihoods = [likely for found in likelihoods.values() for likely in found.values()]
    files: list[Evaluated | Likely] = [*(evaluated for _, evaluated in all_evaluations), *all_likelihoods]
    for file in files:
        require_current(run, file.path, file.inputs)
    require_one_backbone(files)
    metrics = agreed_metrics(all_evaluations)
    backbone = {entry: e for label in zero_shot for entry, e in evaluations[label].items() if entry[0] == 0}
    reporting = [_Reporting(run, label, tuple(tasks), metrics) for label in chosen]
    return [
        one.report(evaluations[one.label], backbone, likelihoods[one.label], left_out[one.label]) for one in reporting
    ]


def as_json(reports: Sequence[MethodReport]) -> list[dict[str, Any]]:
    """Turn reports into JSON values, an object per method; missing values are None (null)."""
    return [
        {
            "method": report.method,
            "stages": list(report.stages),
            "tasks": {
                task: {name: report.quantities[name][index] for name in QUANTITIES}
                | {"metric": report.metrics.get(task)}
                for index, task in enumerate(report.tasks)
            },
            "mean": {name: report.mean[name] for name in MEANS},
            "mean_uncapped": {name: report.mean_uncapped[name] for name in MEANS},
            "mean_without_cider": {name: report.mean_of_bounded[name] for name in MEANS},
            "trainable_parameters": report.trainable_parameters,
            "stored_parameters": report.stored_parameters,
            "routing": dict(report.routing),
            "unseen": {task: dict(values) for task, values in report.unseen.items()},
            "knowledge": {task: dict(values) for task, values in report.knowledge.items()},
            "further": {
                task: {name: {key: values[key] for key in QUANTITIES} for name, values in found.items()}
                for task, found in report.further.items()
            },
            "left_out": [
                {"after": one.stage, "task": one.task, "learned": list(one.learned), "path": str(one.path)}
                for one in report.left_out
            ],
        }
        for report in reports
    ]


class _Reporting:
    """How the files of one method become its report, given the method's protocol.

    Args:
        run: the run directory.
        label: of the method's evaluations, `d-mole@oracle` for those under another routing.
        tasks: the stream, in order.
        metrics: task -> metric.
    """

    def __init__(self, run: Run, label: str, tasks: tuple[str, ...], metrics: Mapping[str, str]) -> None:
        self.run, self.label, self.tasks, self.metrics = run, label, tasks, metrics
        protocol = method_of(label).protocol
        self.zero_shot, self.per_task = protocol == "zero-shot", protocol == "per-task"

    def report(
        self, own: Evaluations, backbone: Evaluations, likelihoods: Likelihoods, left_out: tuple[LeftOut, ...]
    ) -> MethodReport:
        """Build the report.

        Args:
            own: the method's evaluations of the stream.
            backbone: evaluations of the pretrained backbone, stage 0, for a method without its own.
            likelihoods: the method's likelihoods of the stream.
            left_out: its files of another stream.
        """
        tasks, last_stage = self.tasks, len(self.tasks)
        # With the "per-task" protocol the backbone is not a stage before the first task.
        known = {**({} if self.per_task else backbone), **own}
        matrix = self._matrix({entry: evaluated.points for entry, evaluated in known.items()})
        quantities, mean = self._quantities(matrix), self._means(matrix)
        bounded = [column for column, task in enumerate(tasks) if _is_bounded(self.metrics.get(task))]
        outside = sorted({task for _, task in own} - set(tasks))
        after = 0 if self.zero_shot else last_stage
        return MethodReport(
            method=self.label,
            tasks=tasks,
            metrics={task: self.metrics.get(task) for task in (*tasks, *outside)},
            stages=tuple(sorted({stage for stage, task in known if task in tasks and stage <= last_stage})),
            matrix=matrix,
            quantities=quantities,
            mean={name: mean[name] for name in DIFFERENCES} | self._means(_capped(matrix), names=SCORES),
            mean_uncapped=mean,
            mean_of_bounded=self._means(matrix, columns=bounded),
            routing={task: e.own_expert if (e := own.get((after, task))) else None for task in tasks},
            unseen={task: _unseen(known.get((0, task)), own.get((after, task))) for task in outside},
            trainable_parameters=self._trainable_parameters(),
            stored_parameters=self._stored_parameters(own),
            knowledge=self._knowledge(likelihoods),
            further=self._further(known),
            left_out=left_out,
        )

    def _matrix(self, values: Mapping[Entry, Value]) -> Matrix:
        """R[stage][task]; the pretrained backbone is the same at every stage."""
        stages = range(len(self.tasks) + 1)
        sources = [0 for _ in stages] if self.zero_shot else list(stages)
        return [[values.get((stage, task)) for task in self.tasks] for stage in sources]

    def _quantities(self, matrix: Matrix) -> dict[str, tuple[Value, ...]]:
        """Quantities per task, from the scores as they are."""
        scores = continual_scores(_only_diagonal(matrix) if self.per_task else matrix)
        missing: tuple[Value, ...] = (None,) * len(scores.last)
        return {name: getattr(scores, name) if name in self._defined else missing for name in FORMULAS}

    def _means(
        self, matrix: Matrix, *, columns: Sequence[int] | None = None, names: Sequence[str] = MEANS
    ) -> dict[str, Value]:
        """Means over the tasks of `columns`, None for all."""
        scores = continual_scores(_only_diagonal(matrix) if self.per_task else matrix, columns=columns)
        found = scores.mean | scores.averages
        if self.per_task:  # the last row of `_only_diagonal` has the scores right after training
            found["mft"] = found["mfn"]
        return {name: found[name] if name in self._defined else None for name in names}

    @property
    def _defined(self) -> frozenset[str]:
        """The quantities that the method's protocol defines.

        A task alone has no later stage, in which it could be forgotten, and no earlier one to transfer from.
        """
        return frozenset({"last", "mft", "mfn"} if self.per_task else MEANS)

    def _further(self, known: Evaluations) -> dict[str, dict[str, dict[str, Value]]]:
        """Task -> what its metric reports beside the score -> the same quantities as for the score."""
        out: dict[str, dict[str, dict[str, Value]]] = {}
        for column, task in enumerate(self.tasks):
            here = {entry: evaluated for entry, evaluated in known.items() if entry[1] == task}
            for name in dict.fromkeys(name for evaluated in here.values() for name in evaluated.further):
                matrix = self._matrix({entry: evaluated.further.get(name) for entry, evaluated in here.items()})
                quantities = self._quantities(matrix)
                out.setdefault(task, {})[name] = {key: found[column] for key, found in quantities.items()}
        return out

    def _knowledge(self, likelihoods: Likelihoods) -> dict[str, dict[str, Value]]:
        """Likelihoods of each task after it was learnt and at the end, and the difference."""
        out: dict[str, dict[str, Value]] = {task: {} for task in self.tasks}
        for name, lost in (("log_likelihood", "likelihood_forgetting"), ("ranked_first", "ranked_forgetting")):
            matrix = self._matrix({entry: getattr(likely, name) for entry, likely in likelihoods.items()})
            for column, task in enumerate(self.tasks):
                learnt = matrix[column + 1][column]
                last = None if self.per_task else matrix[-1][column]
                difference = None if learnt is None or last is None else learnt - last
                out[task] |= {f"{name}_learnt": learnt, f"{name}_last": last, lost: difference}
        return out

    def _trainable_parameters(self) -> int | None:
        if self.zero_shot:
            return 0
        files = [self.run.expert(task, base_method(self.label)) for task in self.tasks]
        return max((header.facts["parameters"] for path in files if (header := header_of(path, EXPERT))), default=None)

    def _stored_parameters(self, own: Evaluations) -> int | None:
        """Every file counts once, however many tasks it is active for."""
        any_stage = self.zero_shot or self.per_task
        last = {task: e for (stage, task), e in own.items() if any_stage or stage == len(self.tasks)}
        if not last.keys() >= set(self.tasks):
            return None
        names = {name for e in last.values() for name in e.inputs if name.partition("/")[0] in STORED}
        memory = self.run.memory(self.tasks[-1], base_method(self.label))
        paths = {*map(self.run.path_of, names), *([memory] if memory.exists() else [])}
        return sum(map(count_elements, paths)) if all(path.exists() for path in paths) else None


def _is_bounded(metric: str | None) -> bool:
    return metric is None or load_metric(metric).maximum_points <= CEILING


def _capped(matrix: Matrix) -> Matrix:
    return [[None if value is None else min(value, CEILING) for value in row] for row in matrix]


def _only_diagonal(matrix: Matrix) -> Matrix:
    """R[i,i] of every task in the last row, and nothing elsewhere."""
    tasks = len(matrix) - 1
    empty: list[Value] = [None] * tasks
    return [*([empty] * tasks), [matrix[task + 1][task] for task in range(tasks)]]


def _unseen(before: Evaluated | None, after: Evaluated | None) -> dict[str, Value]:
    return {
        "zero_shot": before.points if before else None,
        "last": after.points if after else None,
        "no_expert": after.no_expert if after else None,
    }
