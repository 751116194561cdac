"""Run all methods under one protocol and write the tables: `python pipelines/compare/run.py runs/compare`.

Every experiment (a method, an order of the tasks, a seed) runs as `dmole` commands. An interrupted comparison resumes when the
same command is run again; several processes may work in one folder at once.

    python pipelines/compare/run.py runs/compare --methods seq-ft d-mole --seeds 0     # a part of the main table
    python pipelines/compare/run.py runs/compare --methods mine --force                # rerun from the training on
    python pipelines/compare/run.py runs/compare --only studies                        # ablations of D-MoLE
    python pipelines/compare/run.py runs/chosen --only rank --split validation         # to choose something
    python pipelines/compare/run.py runs/related --config pipelines/compare/related.toml  # another stream
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from _engine import add_options, engine_options, run_experiments
from _files import read_toml, shown_path
from _options import options_for, read_options
from _plan import CONFIG, MAIN, PLAN, Experiment, main_experiments, study_experiments
from _program import exit_with, reported_errors
from _workflow import Comparison
from table import write_results


def main() -> None:
    """Run the chosen experiments, then write and print the tables."""
    options = _options()
    with reported_errors():
        plan, config = read_toml(options.plan), read_toml(options.config)
        comparison = Comparison(
            options.folder,
            plan,
            config,
            split=options.split,
            likelihood=options.likelihood,
            diagonal=options.diagonal,
            options=read_options(options.options or options_for(options.config)),
            source="" if options.config.resolve() == CONFIG else shown_path(options.config),
        )
        experiments = chosen_experiments(plan, options)
        failed = run_experiments(comparison, experiments, force=options.force, options=engine_options(options))
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
    add(
        "--diagonal",
        action="store_true",
        help="evaluate each task only after its own training and at the end: no AVG, FWT",
    )
    add("--plan", type=Path, default=PLAN, help="experiments [pipelines/compare/plan.toml]")
    add("--config", type=Path, default=CONFIG, help="tasks and settings [pipelines/compare/dmole.toml]")
    add("--options", type=Path, metavar="FILE", help="the methods' options [NAME-options.toml beside NAME.toml]")
    add("--results", type=Path, metavar="DIR", help="output folder of the tables [FOLDER/results]")
    add("--force", action="store_true", help="rerun the chosen experiments, from their training on")
    add_options(parser)
    return parser.parse_args()


if __name__ == "__main__":
    main()
