"""Run all methods under one protocol and write the tables: `python pipelines/compare/run.py runs/compare`.

Every experiment (a method, an order of the tasks, a seed) runs as `dmole` commands. An interrupted comparison resumes when the
same command is run again; several processes may work in one folder at once.

    python pipelines/compare/run.py runs/compare --methods seq-ft d-mole --seeds 0     # a part of the main table
    python pipelines/compare/run.py runs/compare --methods mine --force                # rerun from the training on
    python pipelines/compare/run.py runs/compare --only studies                        # ablations of D-MoLE
    python pipelines/compare/run.py runs/chosen --only rank --split validation         # to choose something
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean
from typing import Any

from _comparison import Comparison
from _files import read_toml
from _plan import CONFIG, MAIN, PLAN, Experiment, main_experiments, read_record, rows_of_plan, study_experiments
from _program import exit_with, reported_errors
from table import write_results

from dmole_cli.errors import DmoleError


def main() -> None:
    """Run the chosen experiments, then write and print the tables."""
    options = _options()
    with reported_errors():
        plan, config = read_toml(options.plan), read_toml(options.config)
        comparison = Comparison(options.folder, plan, config, split=options.split, likelihood=options.likelihood)
        experiments = chosen_experiments(plan, options)
        failed = run_experiments(comparison, experiments, force=options.force, jobs=options.jobs)
        shown = {experiment.group for experiment in experiments}
        write_results(options.folder, options.results or options.folder / "results", plan, shown=shown)
    exit_with(failed, of=len(experiments), what="experiments")


def chosen_experiments(plan: Mapping[str, Any], options: argparse.Namespace) -> list[Experiment]:
    """The experiments that the options select, in the order in which they run."""
    found = []
    if MAIN in options.only:
        found += main_experiments(plan, rows=options.methods, seeds=options.seeds, orders=options.orders)
    if studies := [name for name in options.only if name not in (MAIN, "studies")]:
        found += study_experiments(plan, studies=studies, seeds=options.seeds)
    elif "studies" in options.only:
        found += study_experiments(plan, seeds=options.seeds)
    return found


def run_experiments(
    comparison: Comparison, experiments: Sequence[Experiment], *, force: bool = False, jobs: int = 1
) -> list[Experiment]:
    """Run experiments in order and return those that failed; a failure is reported and does not stop the others.

    Args:
        comparison: the folder they belong to.
        experiments: the experiments.
        force: delete their existing results first.
        jobs: number of experiments that run at once.

    Raises:
        DmoleError: an order of the plan does not fit the configuration, or the record of the folder is damaged.
    """
    comparison.write_configs()
    record = read_record(comparison.folder)
    record.split = comparison.split
    orders = {order: comparison.names(order) for order in comparison.plan["orders"]}
    record.add(experiments, orders, rows=rows_of_plan(comparison.plan))
    record.write(comparison.folder)
    failed: list[Experiment] = []
    progress = _Progress(comparison, experiments, failed, jobs)
    for experiment in experiments if force else ():
        comparison.delete(experiment)

    def run(number: int, experiment: Experiment) -> None:
        prefix = f"[{number}/{len(experiments)}] {experiment}"
        try:
            if not comparison.finished(experiment):
                for step in comparison.run(experiment):
                    say(f"{prefix}: {step} ({progress.text()})")
        except DmoleError as error:
            failed.append(experiment)
            say(f"{prefix}: {error.message}\n  -> {error.hint}")

    with ThreadPoolExecutor(max(1, jobs)) as pool:
        waiting = [pool.submit(run, number, experiment) for number, experiment in enumerate(experiments, start=1)]
        try:
            for done in waiting:
                done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return sorted(failed, key=experiments.index)


class _Progress:
    """Elapsed time, and the remaining time as estimated from the finished experiments."""

    def __init__(
        self, comparison: Comparison, experiments: Sequence[Experiment], failed: Sequence[Experiment], jobs: int
    ) -> None:
        self.comparison, self.experiments, self.failed, self.jobs = comparison, experiments, failed, jobs
        self.started = time.monotonic()

    def text(self) -> str:
        """Both as text, such as `12 min elapsed, about 1 h 5 min remaining`."""
        finished: dict[str, list[float]] = {}
        waiting = []
        for experiment in self.experiments:
            if experiment in self.failed:
                continue
            try:
                if self.comparison.finished(experiment):
                    finished.setdefault(experiment.label, []).append(self.comparison.seconds(experiment))
                else:
                    waiting.append(experiment)
            except DmoleError:  # reported when the experiment runs
                continue
        elapsed = f"{_minutes(time.monotonic() - self.started)} elapsed"
        if not finished:
            return elapsed
        average = fmean(seconds for row in finished.values() for seconds in row)
        remaining = sum(fmean(finished.get(experiment.label, [average])) for experiment in waiting) / self.jobs
        return f"{elapsed}, about {_minutes(remaining)} remaining"


def _minutes(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def say(text: str) -> None:
    """Print to stderr; stdout is reserved for the tables."""
    print(text, file=sys.stderr, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("folder", type=Path, help="folder of the comparison; created if needed")
    add("--only", nargs="+", default=[MAIN], metavar="PART", help="main, studies, or names of studies [main]")
    add("--methods", nargs="+", metavar="ROW", help="rows of the table: methods or variants [all]")
    add("--seeds", nargs="+", type=int, metavar="N", help="seeds [those of the plan]")
    add("--orders", nargs="+", metavar="NAME", help="orders of the tasks, by their names in the plan [all]")
    add("--split", choices=("test", "validation"), default="test", help="evaluated split; one per folder [test]")
    add(
        "--likelihood",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also measure likelihoods of the reference answers, which do not depend on the answer's format [yes]",
    )
    add("--plan", type=Path, default=PLAN, help="experiments [pipelines/compare/plan.toml]")
    add("--config", type=Path, default=CONFIG, help="tasks and settings [pipelines/compare/dmole.toml]")
    add("--results", type=Path, metavar="DIR", help="output folder of the tables [FOLDER/results]")
    add("--jobs", type=int, default=1, metavar="N", help="number of experiments that run at once [1]")
    add("--force", action="store_true", help="rerun the chosen experiments, from their training on")
    return parser.parse_args()


if __name__ == "__main__":
    main()
