"""Evaluation and likelihood files of a run, each reduced to what reports need, and the checks that they fit one table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from dmole_cli import catalog
from dmole_cli.artifacts.errors import DamagedArtifact
from dmole_cli.artifacts.evaluation import read_answers
from dmole_cli.artifacts.labels import base_method
from dmole_cli.artifacts.likelihood import read_likelihood
from dmole_cli.artifacts.listing import list_folder
from dmole_cli.artifacts.provenance import Header
from dmole_cli.artifacts.run import Run
from dmole_cli.errors import DmoleError
from dmole_cli.methods.base import PROTOCOLS, Entry, Method, load_method
from dmole_cli.metrics.base import Metric, load_metric
from dmole_cli.reports.continual import Value

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Evaluated:
    """One evaluation file.

    Attributes:
        points: the score of the split.
        further: name -> points, of what the metric reports beside the score.
        metric: its name.
        own_expert, no_expert: shares (0..1) of samples whose active experts include their own task's, and of samples without
            an active expert; None without routers.
        backbone: fingerprint.
        inputs: name -> digest of the artifacts that it was made from.
        learned: the tasks that the model had learned, in order.
        path: the file.
    """

    points: float
    further: Mapping[str, float]
    metric: str
    own_expert: Value
    no_expert: Value
    backbone: str
    inputs: Mapping[str, str]
    learned: tuple[str, ...]
    path: Path


@dataclass(frozen=True)
class Likely:
    """One file of likelihoods.

    Attributes:
        log_likelihood: of the references, mean over samples, in nats per token.
        ranked_first: samples whose right answer is the most probable one, in points; None for an open task.
        backbone: fingerprint.
        inputs: name -> digest of the artifacts that it was made from.
        learned: the tasks that the model had learned, in order.
        path: the file.
    """

    log_likelihood: float
    ranked_first: Value
    backbone: str
    inputs: Mapping[str, str]
    learned: tuple[str, ...]
    path: Path


Evaluations = Mapping[Entry, Evaluated]
Likelihoods = Mapping[Entry, Likely]


def method_of(label: str) -> Method:
    """The method of an evaluation folder; one that is no longer on the shelf counts as sequential, the default."""
    name = base_method(label)
    return load_method(name) if name in catalog.names("methods") else Method()


def methods_on_disk(run: Run, split: str = "test") -> list[str]:
    """List the methods that have an evaluation: bounds first, the main method last, the others by name."""
    found = [path.name for path in list_folder(run.evaluations(split)) if not path.is_file() and files_of(path)]

    def position(label: str) -> tuple[bool, int, str]:
        method = method_of(label)
        return method.is_main and label == method.name, PROTOCOLS.index(method.protocol), label

    return sorted(found, key=position)


def read_evaluations(run: Run, label: str, split: str) -> dict[Entry, Evaluated]:
    """All evaluations of a method on a split.

    Raises:
        DmoleError: a file is damaged, has no sample or does not name its metric; a folder cannot be read.
    """
    return {entry: read_evaluation_file(path) for entry, path in files_of(run.evaluations(split) / label)}


def read_rescored(
    run: Run, labels: Sequence[str], split: str, metrics: Sequence[str]
) -> Iterator[tuple[str, Entry, Evaluated]]:
    """(method, (stage, task), evaluation) of everything that was scored again with these metrics.

    Raises:
        DmoleError: nothing was scored again with a metric, or the same evaluation was scored again with two of them.
    """
    first: dict[tuple[str, Entry], Evaluated] = {}
    for metric in metrics:
        files = {label: files_of(run.rescored(metric).evaluations(split) / label) for label in labels}
        if not any(files.values()):
            raise DmoleError(
                f"no evaluation was scored again by {metric} in {run.root}",
                f"run: dmole rescore {metric}",
            )
        for label, entries in files.items():
            for entry, path in entries:
                evaluated = read_evaluation_file(path)
                known = first.setdefault((label, entry), evaluated)
                if known is not evaluated:
                    message = f"{known.path} and {path} score the same answers"
                    raise DmoleError(message, "pass one --rescored per task")
                yield label, entry, evaluated


def read_likelihoods(run: Run, label: str, split: str) -> dict[Entry, Likely]:
    """All likelihoods of a method on a split.

    Raises:
        DmoleError: a file is damaged or has no sample.
    """
    return {entry: _likely(path) for entry, path in files_of(run.likelihoods(split) / label)}


def agreed_metrics(entries: Iterable[tuple[Entry, Evaluated]]) -> dict[str, str]:
    """Task -> metric.

    Raises:
        DmoleError: a task was scored with two metrics, which one table must not compare.
    """
    first: dict[str, Evaluated] = {}
    for (_, task), evaluated in entries:
        known = first.setdefault(task, evaluated)
        if evaluated.metric != known.metric:
            raise DmoleError(
                f"{evaluated.path} was scored with {evaluated.metric}, {known.path} with {known.metric}",
                f"score all of them with {evaluated.metric}: dmole rescore {evaluated.metric} --task {task}, then report with "
                f"--rescored {evaluated.metric}",
            )
    return {task: evaluated.metric for task, evaluated in first.items()}


def require_one_backbone(files: Sequence[Evaluated | Likely]) -> None:
    """Check that all files were made with the same backbone.

    Raises:
        DmoleError: there are two backbones, which one table must not compare.
    """
    for other in files:
        if (first := files[0]).backbone != other.backbone:
            raise DmoleError(
                f"{first.path} and {other.path} were made with two backbones "
                f"({first.backbone[:12] or 'unnamed'} and {other.backbone[:12] or 'unnamed'})",
                "evaluate again with --force, or pass another --run for the second backbone",
            )


def files_of(folder: Path) -> list[tuple[Entry, Path]]:
    """((stage, task), file) of every file of a method."""
    stages = {int(path.name): path for path in list_folder(folder) if _is_number(path.name)}
    files = {stage: list_folder(path) for stage, path in sorted(stages.items())}
    return [((stage, file.stem), file) for stage, found in files.items() for file in found if file.suffix == ".parquet"]


def _is_number(name: str) -> bool:
    """Whether a name is a number as dmole writes it, without leading zeros."""
    return name.isdecimal() and name == str(int(name))


def read_evaluation_file(path: Path) -> Evaluated:
    """One evaluation.

    Raises:
        ArtifactError: the file is damaged, has no sample or does not name its metric.
    """
    table, header = read_answers(path)
    name = header.settings.get("metric")
    if not isinstance(name, str) or not table.num_rows:
        problem = "holds no sample" if isinstance(name, str) else "does not name its metric"
        raise DamagedArtifact(path, f"{path} {problem}")
    metric = load_metric(name)
    points = metric.scored(table.column("score").to_pylist(), header.facts).points
    own_expert, no_expert = _routed(table, path.stem)
    inputs, learned = header.inputs, _learned(header, path)
    return Evaluated(
        points, _further(metric, table), name, own_expert, no_expert, header.backbone, inputs, learned, path
    )


def _learned(header: Header, path: Path) -> tuple[str, ...]:
    """The tasks that the model had learned.

    Raises:
        DamagedArtifact: the header does not say it.
    """
    found = header.settings.get("learned")
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise DamagedArtifact(path, f"{path} does not say which tasks had been learned")
    return tuple(found)


def _further(metric: Metric, table: pa.Table) -> dict[str, float]:
    """Name -> points of what a metric reports beside the score; empty for most metrics."""
    if not metric.FURTHER:
        return {}
    predictions, references = table.column("prediction").to_pylist(), table.column("references").to_pylist()
    details = [json.loads(text) for text in table.column("details").to_pylist()]
    return {
        name: metric.UNIT_SCALE * fmean(scores(predictions, references=references, details=details))
        for name, scores in metric.FURTHER.items()
    }


def _routed(table: pa.Table, task: str) -> tuple[Value, Value]:
    """Shares of the samples whose active experts include their own task's, and of those without one."""
    import pyarrow.compute as pc

    if not pc.sum(pc.list_value_length(table.column("losses"))).as_py():
        return None, None
    active = table.column("active").combine_chunks()
    own = pc.list_parent_indices(active).filter(pc.equal(pc.list_flatten(active), task))
    without = pc.sum(pc.equal(pc.list_value_length(active), 0)).as_py()
    return pc.count_distinct(own).as_py() / table.num_rows, without / table.num_rows


def _likely(path: Path) -> Likely:
    rows, header = read_likelihood(path)
    if not rows:
        raise DamagedArtifact(path, f"{path} holds no sample")
    ranked = [row.ranked_first for row in rows if row.ranked_first is not None]
    points = 100 * fmean(ranked) if ranked else None
    return Likely(
        fmean(row.log_likelihood for row in rows), points, header.backbone, header.inputs, _learned(header, path), path
    )
