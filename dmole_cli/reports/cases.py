"""Case studies: samples whose answers over the stages show what was kept, forgotten, regained, misrouted or worst."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from dmole_cli.data.tasks import Tasks
from dmole_cli.errors import DmoleError
from dmole_cli.metrics.base import load_metric
from dmole_cli.reports.experiments import Experiment

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

KINDS = {
    "kept": "right after its task was trained, and at the end",
    "forgotten": "right after its task was trained, wrong at the end",
    "regained": "right after its task was trained, wrong at a stage in between, right at the end",
    "misrouted": "its own task's expert is not active at the end",
    "worst": "lowest score at the end, of these the largest loss under its own router",
}
RIGHT = 0.5  # of the score 1: a sample's answer counts as right from here on
COLUMNS = ("sample_id", "question", "prediction", "references", "score", "active", "losses", "images")
QUALITY = 82  # of JPEG


@dataclass(frozen=True)
class CaseAnswer:
    """What a sample was answered at one stage.

    Attributes:
        stage: number of trained tasks.
        after: the task that was trained last.
        prediction: the generated text.
        points: score of the sample, in points.
        active: active experts.
        losses: router of a trained task -> reconstruction loss; empty without routers.
    """

    stage: int
    after: str
    prediction: str
    points: float
    active: tuple[str, ...]
    losses: Mapping[str, float]


@dataclass(frozen=True)
class Case:
    """One sample.

    Attributes:
        task, sample_id: which sample of the evaluated split.
        kinds: keys of `KINDS`.
        question: with the prompt template applied.
        references: the accepted answers.
        images: their names, as the evaluation has them.
        answers: from the stage at which the task was trained to the last one.
    """

    task: str
    sample_id: str
    kinds: tuple[str, ...]
    question: str
    references: tuple[str, ...]
    images: tuple[str, ...]
    answers: tuple[CaseAnswer, ...]


def choose_cases(experiment: Experiment, *, per_kind: int = 12, seed: int = 0) -> list[Case]:
    """Choose samples of each kind, the same ones for the same seed.

    The samples of a kind come in turn from all tasks that have some, at random, but the worst ones by their score and loss. Only
    tasks with a later stage can be kept, forgotten or regained. Stages without an evaluation are left out.

    Args:
        experiment: of which method, order and seed.
        per_kind: number of samples at most.
        seed: of the choice.

    Returns:
        The samples by task and their place in the split; one that was chosen for several kinds appears once.

    Raises:
        ArtifactError: an evaluation is damaged.
    """
    candidates: dict[str, list[list[Case]]] = {kind: [] for kind in KINDS}
    places: dict[tuple[str, str], tuple[int, int]] = {}
    for number, task in enumerate(experiment.tasks):
        stages = _stages(experiment, task)
        if not stages:
            continue
        # One task at a time is in memory, and of it only the candidates are kept.
        for kind, rows in _candidates(experiment, task, stages, per_kind=per_kind, seed=seed).items():
            candidates[kind].append([_case(experiment, task, stages, row, kind) for row in rows])
            places |= {
                (task, case.sample_id): (number, row) for case, row in zip(candidates[kind][-1], rows, strict=True)
            }
    chosen: dict[tuple[str, str], Case] = {}
    for kind, by_task in candidates.items():
        for case in _in_turn(by_task)[:per_kind]:
            known = chosen.get((case.task, case.sample_id))
            kinds = (*known.kinds, kind) if known else (kind,)
            chosen[case.task, case.sample_id] = Case(**{**vars(case), "kinds": kinds})
    return [chosen[key] for key in sorted(chosen, key=places.__getitem__)]


def _stages(experiment: Experiment, task: str) -> dict[int, pa.Table]:
    """The evaluations of a task from its own stage on; none where its own stage is missing, or the samples differ."""
    own = experiment.tasks.index(task) + 1
    last = experiment.last_stage(task)
    found = {stage: experiment.answers(stage, task, COLUMNS) for stage in range(min(own, last), last + 1)}
    tables = {stage: table for stage, table in found.items() if table is not None and table.num_rows}
    if own not in tables:
        return {}
    ids = tables[own].column("sample_id")
    return {stage: table for stage, table in tables.items() if table.column("sample_id").equals(ids)}


def _candidates(
    experiment: Experiment, task: str, stages: Mapping[int, pa.Table], *, per_kind: int, seed: int
) -> dict[str, list[int]]:
    """Kind -> rows of a task's samples, in the order in which they are chosen, at most `per_kind`."""
    import numpy as np

    right = np.stack([table.column("score").to_numpy() >= RIGHT for table in stages.values()])
    last = stages[max(stages)]
    own = _own_losses(last, experiment.tasks.index(task))
    masks = {}
    if experiment.kind.uses_routers:
        masks["misrouted"] = np.array([task not in active for active in last.column("active").to_pylist()])
    if len(stages) > 1:
        masks["kept"] = right[0] & right[-1]
        masks["forgotten"] = right[0] & ~right[-1]
        masks["regained"] = right[-1] & ~right[1:-1].all(axis=0) & right[0]
    found: dict[str, list[int]] = {}
    for kind in KINDS:
        if kind in masks:
            # Independent of other kinds and tasks.
            key = [seed, list(KINDS).index(kind), experiment.tasks.index(task)]
            order = np.random.default_rng(key).permutation(np.flatnonzero(masks[kind]))
            found[kind] = [int(row) for row in order[:per_kind]]
    scores = last.column("score").to_numpy()
    wrong = np.flatnonzero(scores < RIGHT)
    order = wrong[np.lexsort((wrong, -own[wrong], scores[wrong]))]
    found["worst"] = [int(row) for row in order[:per_kind]]
    return found


def _own_losses(table: pa.Table, column: int) -> np.ndarray:
    """The reconstruction loss of each sample under the router of its own task; 0 without one."""
    import numpy as np

    losses = table.column("losses").to_pylist()
    return np.array([row[column] if column < len(row) else 0.0 for row in losses])


def _case(experiment: Experiment, task: str, stages: Mapping[int, pa.Table], row: int, kind: str) -> Case:
    found = {stage: table.slice(row, 1).to_pylist()[0] for stage, table in stages.items()}
    first = next(iter(found.values()))
    metric = experiment.report.metrics[task]
    assert metric is not None, "its evaluations were read"
    unit = load_metric(metric).UNIT_SCALE
    return Case(
        task=task,
        sample_id=first["sample_id"],
        kinds=(kind,),
        question=first["question"],
        references=tuple(first["references"]),
        images=tuple(first["images"]),
        answers=tuple(_answer(experiment, stage, values, unit) for stage, values in found.items()),
    )


def _answer(experiment: Experiment, stage: int, values: Mapping[str, Any], unit: float) -> CaseAnswer:
    return CaseAnswer(
        stage=stage,
        after=experiment.tasks[stage - 1] if stage else "",
        prediction=values["prediction"],
        points=unit * values["score"],
        active=tuple(values["active"]),
        losses=dict(zip(experiment.tasks[: len(values["losses"])], values["losses"], strict=True)),
    )


def _in_turn(by_task: Sequence[Sequence[Case]]) -> list[Case]:
    """The first of every task, then the second of every task, and so on."""
    longest = max(map(len, by_task), default=0)
    return [cases[turn] for turn in range(longest) for cases in by_task if turn < len(cases)]


# ------------------------------------------------------------------------------------------------ images


def case_image(data: Tasks | None, task: str, sample_id: str, split: str, size: int = 160) -> bytes | None:
    """The first image of a sample as a small JPEG; None where it is missing or damaged, or the sample has none.

    Args:
        data: the tasks; None if there is no configuration.
        task, sample_id: which sample.
        split: the evaluated split.
        size: longest side in pixels.
    """
    if data is None:
        return None
    try:
        row = _rows(data, task, split).get(sample_id)
        images = () if row is None else data.samples(task, split)[row].images
        if not images:
            return None
        image = images[0]()
    except DmoleError:
        return None
    image.thumbnail((size, size))
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=QUALITY)
    return file.getvalue()


@lru_cache(maxsize=4)
def _rows(data: Tasks, task: str, split: str) -> dict[str, int]:
    """Sample -> its place in the split."""
    return {sample.sample_id: row for row, sample in enumerate(data.samples(task, split))}
