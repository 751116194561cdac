"""Runs the experiments of a comparison with Snakemake."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path

from _plan import Experiment, read_record, rows_of_plan
from _workflow import PACKAGE, Comparison, Jobs, write_workflow

from dmole_cli.artifacts.files import lock
from dmole_cli.errors import DmoleError

SNAKEFILE = Path(__file__).with_name("Snakefile")
# Stages that `--force` reruns, of a method and of a variant that is evaluated in another way only.
RERUN = (("allocate", "train-task", "evaluate", "likelihood"), ("evaluate", "likelihood"))
# Contents decide, not times, for files of up to this size. Snakemake's own lock outlives a process that is killed; that of
# `_alone_in` does not.
OPTIONS = (
    f"--nolock --rerun-incomplete --keep-going --keep-incomplete --scheduler greedy --max-checksum-file-size {2**40}"
)
PENDING = "update pending"
TRIGGERS = "--rerun-triggers mtime input params"


def run_experiments(
    comparison: Comparison, experiments: Sequence[Experiment], *, force: bool = False, options: Sequence[str] = ()
) -> list[Experiment]:
    """Run experiments and return those that failed; a failure is reported and does not stop the others.

    Args:
        comparison: the folder they belong to.
        experiments: the experiments.
        force: delete their existing results first.
        options: of Snakemake.

    Raises:
        DmoleError: an order of the plan does not fit the configuration, the record of the folder is damaged, results were made
            from something else, or another process works in the folder.
    """
    found: dict[Experiment, Jobs] = {}
    failed: list[Experiment] = []
    for experiment in experiments:
        try:
            found.update([comparison.jobs(experiment)])
        except DmoleError as error:
            failed.append(experiment)
            print(f"{experiment}: {error.message}\n  -> {error.hint}", file=sys.stderr)
    with _alone_in(comparison.folder):
        _record(comparison, [*found, *failed])
        jobs = write_workflow(comparison.folder, found.values())
        chosen = {
            path for e, own in found.items() for path, job in own.items() if job["stage"] in RERUN[bool(e.evaluate)]
        }
        unrecorded = _delete_outdated(comparison.folder, jobs, chosen, force=force)
        forced = ("--forcerun", *unrecorded) if unrecorded else ()
        done = _snakemake(comparison.folder, "--show-failed-logs", "--quiet", "host", *forced, *options)
        left = set() if done else {path for path, (*_, plan) in _summary(comparison.folder).items() if plan == PENDING}
    return failed + [experiment for experiment, own in found.items() if left & own.keys()]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `engine_options`."""
    add = parser.add_argument
    add("--jobs", type=int, metavar="N", help="number of commands that run at once [1]")
    add("--executor", metavar="NAME", help="slurm, or another of Snakemake's executors [this machine]")
    add(
        "--profile", type=Path, metavar="DIR", help="a profile of Snakemake, for the resources of the jobs on a cluster"
    )


def engine_options(options: argparse.Namespace) -> list[str]:
    """The options of Snakemake that were given by those of `add_options`."""
    jobs = options.jobs or (None if options.profile else 1)
    given = {"--jobs": jobs, "--executor": options.executor, "--profile": options.profile}
    return [word for name, value in given.items() if value is not None for word in (name, str(value))]


def _record(comparison: Comparison, experiments: Sequence[Experiment]) -> None:
    record = read_record(comparison.folder)
    if record.experiments and record.split != comparison.split:
        message = f"the experiments in {comparison.folder} are evaluated on the {record.split} split"
        raise DmoleError(message, f"use another folder, or --split {record.split}")
    comparison.write_configs()
    record.split, record.config = comparison.split, comparison.source
    orders = {order: comparison.names(order) for order in comparison.plan["orders"]}
    record.add(experiments, orders, rows=rows_of_plan(comparison.plan))
    record.write(comparison.folder)


def _delete_outdated(folder: Path, jobs: Jobs, chosen: Set[str], *, force: bool) -> list[str]:
    """Refuse artifacts made from something else; with `force`, delete them, what was made from them, and the chosen ones.

    Returns the other ones that Snakemake has no record of, as in a folder of an earlier version: `dmole` has to check them.
    """
    existing = {path: values for path, values in _summary(folder).items() if values[-2] != "missing"}
    unrecorded = {path for path, (_, _, log, *_) in existing.items() if log == "-"}
    pending = [path for path, (*_, plan) in existing.items() if plan == PENDING and path not in unrecorded]
    if (changed := [path for path in pending if existing[path][-2] != "ok"]) and not force:
        lines = [f"{len(changed)} results in {folder} were made from something else:"]
        lines += [f"{path}: {existing[path][-2]}" for path in changed[:5]]
        raise DmoleError("\n  ".join(lines), "pass --force to rerun the chosen experiments, or use another folder")
    again = {*pending, *chosen} if force else set()
    for path in again:
        (folder / path).unlink(missing_ok=True)
        for found in (found for pattern in jobs[path]["folders"] for found in folder.glob(pattern)):
            shutil.rmtree(found)
    return sorted(unrecorded - again)


def _summary(folder: Path) -> dict[str, list[str]]:
    """What Snakemake knows of each artifact: date, rule, log, status and plan."""
    with redirect_stdout(StringIO()) as text:
        if not _snakemake(folder, "--summary", "--quiet", "all"):
            raise DmoleError("Snakemake cannot read the workflow", "its message is above")
    rows = [line.split("\t") for line in text.getvalue().splitlines() if "\t" in line]
    return {path: values for path, *values in rows[1:]}


def _snakemake(folder: Path, *options: str) -> bool:
    """Run Snakemake, in this process: nothing is left running if it is killed, but its jobs' commands. Returns success."""
    try:
        from snakemake.cli import main
    except ImportError as error:
        raise DmoleError("the comparison runs on Snakemake", 'install it: pip install "dmole[compare]"') from error
    # Commands import the same package as this process.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    try:
        main(["--snakefile", str(SNAKEFILE), "--directory", str(folder), *f"{OPTIONS} {TRIGGERS}".split(), *options])
    except SystemExit as end:
        return not end.code
    return True


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "workflow.lock").open("w", encoding="utf-8") as file:
        if not lock(file.fileno()):
            raise DmoleError(f"another process runs the comparison in {folder}", "wait for it, or use another folder")
        yield
