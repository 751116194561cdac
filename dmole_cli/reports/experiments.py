"""The experiments that pages, figures and exports are made from, and values over their seeds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from dmole_cli.artifacts.evaluation import read_answers
from dmole_cli.artifacts.run import Run
from dmole_cli.methods.base import Method
from dmole_cli.reports.collect import MethodReport
from dmole_cli.reports.continual import Value
from dmole_cli.reports.evaluations import method_of

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa

    from dmole_cli.data.tasks import Tasks


@dataclass(frozen=True)
class Experiment:
    """One method with one order of the tasks and one seed.

    Attributes:
        method: its label, `d-mole@oracle` for another routing.
        order: name of the order in a comparison; empty for a run directory.
        seed: of the run.
        run: the run directory.
        report: scores, routing and parameters.
        split: the evaluated split.
        variant: name of the row in a comparison, where it is not the method's.
        rescored: metrics whose scores replace the original ones.
    """

    method: str
    order: str
    seed: int
    run: Run
    report: MethodReport
    split: str = "test"
    variant: str = ""
    rescored: Sequence[str] = ()

    @property
    def name(self) -> str:
        """What it is called in tables and legends."""
        return self.variant or self.method

    @property
    def tasks(self) -> tuple[str, ...]:
        """The stream, in order."""
        return self.report.tasks

    @cached_property
    def kind(self) -> Method:
        """The method itself."""
        return method_of(self.method)

    @property
    def is_main(self) -> bool:
        """Whether this is the main method itself, and no variant of it."""
        return self.kind.is_main and self.name == self.kind.name

    @property
    def is_routing(self) -> bool:
        """Whether this is another routing of a method at evaluation, with the same training."""
        return "@" in self.method

    def last_stage(self, task: str) -> int:
        """The stage of a task's Last score: the last one, 0 without training, a task's own where each is trained alone."""
        protocol = self.kind.protocol
        own = self.tasks.index(task) + 1
        return {"zero-shot": 0, "per-task": own}.get(protocol, len(self.tasks))

    def answers(self, after: int, task: str, columns: Sequence[str]) -> pa.Table | None:
        """Columns of the evaluation of a task after so many trained tasks; None where there is none of this stream.

        Raises:
            ArtifactError: the file is damaged.
        """
        runs = (*(self.run.rescored(metric) for metric in self.rescored), self.run)
        paths = [run.evaluation(self.method, after, task, self.split) for run in runs]
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            return None
        table, header = read_answers(path)
        current = header.settings.get("learned") == self.kind.learned(self.tasks, after, task)
        return table.select(list(columns)) if current else None


@dataclass(frozen=True)
class Source:
    """What a page and its figures are made from.

    Attributes:
        title: of the page.
        experiments: all methods, orders and seeds; in a run directory, those that were evaluated there.
        seed: of samples that are drawn for figures.
        data: the tasks, whose images are shown where they can be read; None if there is no configuration.
        benchmarks: `bench.json` of `pipelines/bench/run.py`, for the runtime by rank; None for none.
    """

    title: str
    experiments: Sequence[Experiment]
    seed: int = 0
    data: Tasks | None = None
    benchmarks: Path | None = None

    @property
    def examples(self) -> list[Experiment]:
        """What is shown of one run alone: of every order the main method with the lowest seed, else a method with routers.

        Empty where nothing was evaluated.
        """
        found = dict[str, Experiment]()
        for one in sorted(self.experiments, key=lambda one: (not one.is_main, not one.kind.uses_routers, one.seed)):
            if not one.is_routing:
                found.setdefault(one.order, one)
        return [found[order] for order in sorted(found)]

    def groups(self) -> dict[str, dict[str, list[Experiment]]]:
        """Order -> method -> its experiments by seed; orders by name, methods as they were given."""
        found: dict[str, dict[str, list[Experiment]]] = {
            order: {} for order in sorted({e.order for e in self.experiments})
        }
        for one in self.experiments:
            found[one.order].setdefault(one.name, []).append(one)
        return {
            order: {method: sorted(group, key=lambda one: one.seed) for method, group in methods.items()}
            for order, methods in found.items()
        }


@dataclass(frozen=True)
class Spread:
    """One quantity over seeds.

    Attributes:
        mean, low, high: over the seeds that have a value.
        deviation: sample standard deviation; None for one seed.
        seeds: how many have a value.
    """

    mean: float
    deviation: float | None
    low: float
    high: float
    seeds: int


def spread(values: Iterable[Value]) -> Spread | None:
    """The values of the seeds that have one; None where none has."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return Spread(fmean(known), stdev(known) if len(known) > 1 else None, min(known), max(known), len(known))


def matrix_over_seeds(experiments: Sequence[Experiment]) -> list[list[Spread | None]]:
    """R[s,i] over the seeds of one method and order."""
    matrices = [one.report.matrix for one in experiments]
    return [
        [spread(matrix[stage][column] for matrix in matrices) for column in range(len(row))]
        for stage, row in enumerate(matrices[0])
    ]


def seeds_text(experiments: Sequence[Experiment]) -> str:
    """`, mean of 3 seeds`; empty for one seed."""
    return f", mean of {len(experiments)} seeds" if len(experiments) > 1 else ""
