"""Continual-learning quantities (last, average, transfer, forgetting) of a score matrix over a stream of tasks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from statistics import fmean

# An entry or quantity; None where an evaluation is missing, which is never filled in.
Value = float | None
# Rows: stages 0 (the pretrained backbone) to T. Columns: the T tasks in the order of the stream.
Matrix = Sequence[Sequence[Value]]

# Printed below every table, because the literature uses several of these names for different quantities.
FORMULAS = {
    "last": "last_i = R[T,i]; mean over all tasks",
    "avg": "avg_i = (1/T) Σ_{s=1..T} R[s,i]; mean over all tasks, those not yet seen at stage s included",
    "bwt": "bwt_i = R[T,i] - R[i,i]; mean over the first T-1 tasks",
    "fwt": "fwt_i = R[i-1,i] - R[0,i]; mean over all tasks but the first",
    "forgetting": "forgetting_i = max_{s≥i} R[s,i] - R[T,i]; mean over the first T-1 tasks",
}

# Averages of the whole stream under the names that multimodal continual instruction tuning uses for them.
AVERAGES = {
    "mft": "MFT = (1/T) Σ_i R[i,i], each task right after its own training",
    "mfn": "MFN = (1/T) Σ_i R[T,i], the mean Last",
    "maa": "MAA = (1/T) Σ_{s=1..T} (1/s) Σ_{i≤s} R[s,i], unlike AVG only over the tasks seen at stage s",
}


@dataclass(frozen=True, slots=True)
class ContinualScores:
    """The quantities of `FORMULAS`, in the unit of the matrix.

    Attributes:
        last, avg, bwt, fwt, forgetting: a value per task in the order of the stream, None where an entry is missing.
        mean: each quantity's mean over the tasks that its formula names, None where one of them is missing.
        averages: those of `AVERAGES`, None where an entry is missing.
    """

    last: tuple[Value, ...]
    avg: tuple[Value, ...]
    bwt: tuple[Value, ...]
    fwt: tuple[Value, ...]
    forgetting: tuple[Value, ...]
    mean: dict[str, Value]
    averages: dict[str, Value]


def continual_scores(matrix: Matrix, *, columns: Collection[int] | None = None) -> ContinualScores:
    """Compute every quantity per task and its mean.

    Args:
        matrix: T + 1 rows of T scores, one row per stage from 0 (nothing trained yet).
        columns: the tasks, counted from 0, that enter the means; all by default. Leave out those whose
            metric has a higher maximum (CIDEr) for a mean without them. The values per task do not depend on it.

    Raises:
        ValueError: the matrix does not have T + 1 rows of T entries, or a column does not exist.

    Source: https://arxiv.org/abs/2506.11672 for Last and AVG, https://arxiv.org/abs/1706.08840 for the transfers,
    https://arxiv.org/abs/2508.07307 (MCITlib) for MFT and MFN, https://arxiv.org/abs/2403.08350 (CoIN) for MAA.
    """
    tasks = len(matrix) - 1
    if tasks < 1 or any(len(row) != tasks for row in matrix):
        raise ValueError(f"a matrix of T + 1 rows and T columns is needed, not rows of {[len(row) for row in matrix]}")
    chosen = set(range(tasks)) if columns is None else set(columns)
    if not chosen <= set(range(tasks)):
        raise ValueError(f"columns {sorted(chosen - set(range(tasks)))} do not exist in a matrix of {tasks} tasks")

    by_task = {
        name: tuple(function([row[task] for row in matrix], task + 1) for task in range(tasks))
        for name, function in _QUANTITIES.items()
    }
    # There is no forgetting of the last task, and no transfer to the first one.
    counted = {"bwt": range(tasks - 1), "forgetting": range(tasks - 1), "fwt": range(1, tasks)}
    mean = {
        name: _mean([values[task] for task in counted.get(name, range(tasks)) if task in chosen])
        for name, values in by_task.items()
    }
    return ContinualScores(**by_task, mean=mean, averages=_averages(matrix, sorted(chosen)))


def _averages(matrix: Matrix, columns: Sequence[int]) -> dict[str, Value]:
    """The quantities of `AVERAGES` over these tasks; a stage at which none of them has been seen does not count in MAA."""
    seen = [[row[task] for task in columns if task < stage] for stage, row in enumerate(matrix)]
    return {
        "mft": _mean([matrix[task + 1][task] for task in columns]),
        "mfn": _mean([matrix[-1][task] for task in columns]),
        "maa": _mean([_mean(values) for values in seen if values]),
    }


# One task's scores over the stages 0 to T, and the stage after which it was learnt -> a quantity.
Column = Sequence[Value]


def _last(column: Column, learnt: int) -> Value:
    return column[-1]


def _avg(column: Column, learnt: int) -> Value:
    return _mean(column[1:])


def _bwt(column: Column, learnt: int) -> Value:
    return _difference(column[-1], column[learnt])


def _fwt(column: Column, learnt: int) -> Value:
    return _difference(column[learnt - 1], column[0])


def _forgetting(column: Column, learnt: int) -> Value:
    since = [value for value in column[learnt:] if value is not None]
    # The best score is unknown where the score of a stage is missing.
    return max(since) - since[-1] if len(since) == len(column) - learnt else None


_QUANTITIES: dict[str, Callable[[Column, int], Value]] = {
    "last": _last,
    "avg": _avg,
    "bwt": _bwt,
    "fwt": _fwt,
    "forgetting": _forgetting,
}


def _difference(later: Value, earlier: Value) -> Value:
    return None if later is None or earlier is None else later - earlier


def _mean(values: Sequence[Value]) -> Value:
    known = [value for value in values if value is not None]
    return fmean(known) if known and len(known) == len(values) else None
