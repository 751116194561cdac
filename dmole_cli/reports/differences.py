"""Methods against each other: means over seeds, and paired differences with confidence intervals over samples and seeds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dmole_cli.metrics.base import load_metric
from dmole_cli.reports.estimates import LEVEL
from dmole_cli.reports.experiments import Experiment, Spread, spread

if TYPE_CHECKING:
    import numpy as np

RESAMPLES = 1000
BATCH = 2**22  # values that are resampled at once, 32 MiB
SHOWN = ("last", "avg", "bwt")  # means of the report that are compared over seeds


@dataclass(frozen=True)
class Difference:
    """The Last scores of the main method minus those of another one, both of the same seeds and samples, in points.

    Attributes:
        method, other: labels.
        mean: of the differences, over seeds, samples and tasks.
        by_task: task -> mean over seeds and samples.
        over_samples: ends of the confidence interval for other samples; the seeds are these.
        over_both: ends of the confidence interval for other samples and other seeds; None for one seed.
        seeds: the seeds that both have.
        samples: number of test samples, over all tasks.
    """

    method: str
    other: str
    mean: float
    by_task: Mapping[str, float]
    over_samples: tuple[float, float]
    over_both: tuple[float, float] | None
    seeds: tuple[int, ...]
    samples: int

    @property
    def interval(self) -> tuple[float, float]:
        """The interval that covers most of what may vary."""
        return self.over_both or self.over_samples

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval is on one side of zero."""
        return self.interval[0] > 0 or self.interval[1] < 0


def over_seeds(group: Mapping[str, Sequence[Experiment]]) -> dict[str, dict[str, Spread | None]]:
    """Method -> quantity of `SHOWN` -> its mean over the tasks, over the seeds of one order."""
    return {
        method: {name: spread(one.report.mean[name] for one in experiments) for name in SHOWN}
        for method, experiments in group.items()
    }


def differences(group: Mapping[str, Sequence[Experiment]], *, main: str, seed: int) -> list[Difference]:
    """The main method against every other one of the same order, in the order of the group.

    The statistic is the mean over tasks of the mean over samples (and seeds) of the paired differences of a sample's scores.
    `scipy.stats.bootstrap` gives the percentile interval: the samples of each task are resampled with replacement, the same ones
    for all seeds and methods, because all of them answer the same samples; for the interval over both, the seeds, too. Methods
    without scores of the same samples are left out.

    Args:
        group: method -> its experiments, one per seed.
        main: a method of the group.
        seed: of the resampling.

    Raises:
        DmoleError: an evaluation is damaged.
    """
    own = {one.seed: _LastScores(one) for one in group[main]}
    if not all(scores.complete for scores in own.values()):
        return []
    # Methods with the same seeds are resampled together.
    together: dict[tuple[int, ...], dict[str, list[np.ndarray]]] = {}
    for method, experiments in group.items():
        paired = {one.seed: _LastScores(one) for one in experiments if method != main and one.seed in own}
        seeds = tuple(sorted(number for number, scores in paired.items() if scores.complete))
        found = _paired([own[number] for number in seeds], [paired[number] for number in seeds])
        if found is not None:
            together.setdefault(seeds, {})[method] = found
    made = {
        one.other: one
        for seeds, methods in together.items()
        for one in _compared(main, methods, tasks=group[main][0].tasks, seeds=seeds, seed=seed)
    }
    return [made[method] for method in group if method in made]


class _LastScores:
    """Scores in points of each task's samples, at the stage of its Last score.

    Args:
        experiment: of one seed.

    Attributes:
        complete: whether every task was evaluated.
        tasks: a pair (ids, points) per task.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.tasks = [found for task in experiment.tasks if (found := _scores(experiment, task)) is not None]
        self.complete = len(self.tasks) == len(experiment.tasks)


def _scores(experiment: Experiment, task: str) -> tuple[np.ndarray, np.ndarray] | None:
    table = experiment.answers(experiment.last_stage(task), task, ("sample_id", "score"))
    metric = experiment.report.metrics.get(task)
    if table is None or metric is None:
        return None
    scale = load_metric(metric).UNIT_SCALE
    return table.column("sample_id").to_numpy(), scale * table.column("score").to_numpy()


def _paired(ours: Sequence[_LastScores], theirs: Sequence[_LastScores]) -> list[np.ndarray] | None:
    """Differences of the same samples, [seeds, samples] per task; None where the samples are not the same, or a task has one."""
    import numpy as np

    if not ours:
        return None
    found = []
    for task, (ids, _) in enumerate(ours[0].tasks):
        order = np.argsort(ids)
        if len(order) < 2:
            return None
        rows = []
        for one, other in zip(ours, theirs, strict=True):
            our, their = (_in_order(*scores.tasks[task], ids[order]) for scores in (one, other))
            if our is None or their is None:
                return None
            rows.append(our - their)
        found.append(np.stack(rows))
    return found


def _in_order(ids: np.ndarray, points: np.ndarray, wanted: np.ndarray) -> np.ndarray | None:
    """The points of the wanted samples (sorted by id); None where these are others."""
    import numpy as np

    order = np.argsort(ids)
    return points[order] if np.array_equal(ids[order], wanted) else None


def _compared(
    main: str,
    methods: Mapping[str, Sequence[np.ndarray]],
    *,
    tasks: Sequence[str],
    seeds: tuple[int, ...],
    seed: int,
) -> Iterator[Difference]:
    """Differences to methods that have the same seeds."""
    import numpy as np

    # [methods, seeds, samples] per task
    paired = [np.stack([found[task] for found in methods.values()]) for task in range(len(tasks))]
    by_task = np.stack([values.mean(axis=(1, 2)) for values in paired])
    # Of one seed, there is only one to draw; scipy wants two observations.
    numbers = np.arange(max(2, len(seeds))) % len(seeds)
    numbers = np.broadcast_to(numbers, (len(methods), len(seeds), len(numbers)))
    over_samples, over_both = _intervals([numbers, *paired], seed=seed)
    for index, other in enumerate(methods):
        yield Difference(
            method=main,
            other=other,
            mean=float(by_task[:, index].mean()),
            by_task={task: float(values[index]) for task, values in zip(tasks, by_task, strict=True)},
            over_samples=over_samples[index],
            over_both=over_both[index] if len(seeds) > 1 else None,
            seeds=seeds,
            samples=sum(values.shape[-1] for values in paired),
        )


def _means(drawn: np.ndarray, *tasks: np.ndarray, axis: int) -> np.ndarray:
    """Means over tasks and samples, with the seeds as they are and with the drawn ones [2, methods, resamples].

    Args:
        drawn: numbers of the drawn seeds [methods, seeds, resamples, draws], the same for all methods and seeds.
        *tasks: values of the drawn samples [methods, seeds, resamples, samples], for each task.
        axis: the last one.
    """
    import numpy as np

    means = sum(values.mean(axis=axis) for values in tasks) / len(tasks)  # [methods, seeds, resamples]
    chosen = np.take_along_axis(means, drawn[0, 0].T[None], axis=1)
    return np.stack([means.mean(axis=1), chosen.mean(axis=1)])


def _intervals(data: Sequence[np.ndarray], *, seed: int) -> list[list[tuple[float, float]]]:
    """The ends of the percentile intervals over samples, and over samples and seeds, for each method."""
    import numpy as np
    from scipy.stats import bootstrap

    found = bootstrap(
        data,
        _means,
        n_resamples=RESAMPLES,
        batch=max(1, BATCH // sum(values.size for values in data)),
        axis=-1,
        confidence_level=LEVEL,
        method="percentile",
        vectorized=True,
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    return [
        [(float(low), float(high)) for low, high in zip(*ends, strict=True)]
        for ends in zip(found.low, found.high, strict=True)
    ]


def conclusion(found: Sequence[Difference]) -> str:
    """What may and may not be concluded from the differences to all other methods."""
    seeds = {len(one.seeds) for one in found}
    clear = [one for one in found if one.excludes_zero]
    better, worse = ([one.other for one in clear if (one.mean > 0) is sign] for sign in (True, False))
    unclear = [one.other for one in found if not one.excludes_zero]
    parts = [
        f"{found[0].method} scores higher than {_names(better)}",
        *([f"lower than {_names(worse)}"] if worse else []),
        *(
            [f"no difference can be shown to {_names(unclear)}, which does not mean that there is none"]
            if unclear
            else []
        ),
    ]
    text = "; ".join(parts if better else parts[1:] or ["nothing to compare"])
    text = f"{text[0].upper() if not better else text[0]}{text[1:]}."
    if seeds == {1}:
        over = f"the {found[0].samples:,} test samples; one seed says nothing about what another seed would give"
    else:
        few = min(seeds)
        over = (
            f"the {found[0].samples:,} test samples and the seeds; {few} seeds are few, so that the interval is rough"
        )
    text += f" The {100 * LEVEL:.0f} % intervals are over {over}, and nothing about other tasks, orders or backbones."
    if len(found) > 1:
        chance = len(found) * (1 - LEVEL)
        text += (
            f" Each of the {len(found)} intervals is for one comparison: without any difference, about {chance:.1f} of them "
            "would exclude 0 by chance."
        )
    return text


def _names(methods: Sequence[str]) -> str:
    return ", ".join(methods) or "none"
