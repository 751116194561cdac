"""All methods under one protocol, and the table of a paper: `python pipelines/compare/run.py runs/compare`.

Every cell (a method, an order of the tasks, a seed) is run by the command line tool. Start it again after a crash, a kill or a
restart of the machine and it goes on where it was; several may work in one folder at once.

    python pipelines/compare/run.py runs/compare --methods seq-ft d-mole --seeds 0     # some of it
    python pipelines/compare/run.py runs/compare --methods mine --force                # again, from its training on
    python pipelines/compare/run.py runs/compare --only studies                        # what the parts of D-MoLE do
    python pipelines/compare/run.py runs/chosen --only rank --split validation         # before something is chosen
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

from _plan import CONFIG, PLAN, Cell, main_cells, read_record, read_toml, rows_of_plan, study_cells
from _work import Comparison
from table import write_results

from dmole_cli.errors import DmoleError


def main() -> None:
    """Run what was asked for, then write and print the tables."""
    options = _options()
    try:
        plan, config = read_toml(options.plan), read_toml(options.config)
        comparison = Comparison(options.folder, plan, config, split=options.split, likelihood=options.likelihood)
        cells = chosen_cells(plan, options)
        failed = run_cells(comparison, cells, force=options.force, jobs=options.jobs)
        shown = {cell.group for cell in cells}
        write_results(options.folder, options.results or options.folder / "results", plan, shown=shown)
    except DmoleError as error:
        sys.exit(f"error: {error.message}\n  -> {error.hint}")
    except KeyboardInterrupt:
        sys.exit("interrupted; start the same command again to go on")
    sys.exit(f"{len(failed)} of {len(cells)} cells failed: {'; '.join(map(str, failed))}" if failed else 0)


def chosen_cells(plan: Mapping[str, Any], options: argparse.Namespace) -> list[Cell]:
    """What was asked for, in the order of work."""
    cells = []
    if "main" in options.only:
        cells += main_cells(plan, rows=options.methods, seeds=options.seeds, orders=options.orders)
    if studies := [name for name in options.only if name not in ("main", "studies")]:
        cells += study_cells(plan, studies=studies, seeds=options.seeds)
    elif "studies" in options.only:
        cells += study_cells(plan, seeds=options.seeds)
    return cells


def run_cells(comparison: Comparison, cells: Sequence[Cell], *, force: bool = False, jobs: int = 1) -> list[Cell]:
    """Run cells in their order; what fails is said and does not stop the others. Gives the cells that failed.

    Args:
        comparison: what they have in common.
        cells: what is to be done.
        force: forget what is there of them first.
        jobs: how many are worked on at once.

    Raises:
        DmoleError: an order of the plan does not fit the configuration, or the record of the folder is damaged.
    """
    orders = {order: comparison.names(order) for order in comparison.plan["orders"]}
    comparison.write_configs()
    record = read_record(comparison.folder)
    record.split = comparison.split
    record.add(cells, orders, rows=rows_of_plan(comparison.plan))
    record.write(comparison.folder)
    failed: list[Cell] = []
    clock = _Clock(comparison, cells, failed, jobs)
    for cell in cells if force else ():
        comparison.forget(cell)

    def one(number: int, cell: Cell) -> None:
        place = f"[{number}/{len(cells)}] {cell}"
        try:
            if not comparison.finished(cell):
                for step in comparison.work(cell):
                    say(f"{place}: {step} ({clock.words()})")
        except DmoleError as error:
            failed.append(cell)
            say(f"{place}: {error.message}\n  -> {error.hint}")

    with ThreadPoolExecutor(max(1, jobs)) as pool:
        waiting = [pool.submit(one, number, cell) for number, cell in enumerate(cells, start=1)]
        try:
            for done in waiting:
                done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return sorted(failed, key=cells.index)


class _Clock:
    """What has passed, and what remains by what the finished cells took."""

    def __init__(self, comparison: Comparison, cells: Sequence[Cell], failed: Sequence[Cell], jobs: int) -> None:
        self.comparison, self.cells, self.failed, self.jobs = comparison, cells, failed, jobs
        self.started = time.monotonic()

    def words(self) -> str:
        """As people say it."""
        took: dict[str, list[float]] = {}
        waiting = []
        for cell in self.cells:
            if cell in self.failed:
                continue
            try:
                if self.comparison.finished(cell):
                    took.setdefault(cell.label, []).append(self.comparison.seconds(cell))
                else:
                    waiting.append(cell)
            except DmoleError:  # said when it is the cell's turn
                continue
        passed = _minutes(time.monotonic() - self.started)
        if not took:
            return passed
        usual = fmean(seconds for row in took.values() for seconds in row)
        remaining = sum(fmean(took.get(cell.label, [usual])) for cell in waiting) / self.jobs
        return f"{passed} so far, about {_minutes(remaining)} to go"


def _minutes(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def say(text: str) -> None:
    """One line of talk; the table alone belongs to stdout."""
    print(text, file=sys.stderr, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the comparison; made when needed")
    parser.add_argument(
        "--only", nargs="+", default=["main"], metavar="PART", help="main, studies, or single studies [main]"
    )
    parser.add_argument("--methods", nargs="+", metavar="ROW", help="rows of the table: methods or variants [all]")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="N", help="[the plan's]")
    parser.add_argument("--orders", nargs="+", metavar="NAME", help="of the tasks, by their names in the plan [all]")
    parser.add_argument(
        "--split",
        choices=("test", "validation"),
        default="test",
        help="validation, for choices; in a folder of its own",
    )
    parser.add_argument(
        "--likelihood",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="measure the likelihood of the right answers as well: knowledge lost, or format? [yes]",
    )
    parser.add_argument("--plan", type=Path, default=PLAN, help="what is compared [pipelines/compare/plan.toml]")
    parser.add_argument("--config", type=Path, default=CONFIG, help="the stream [pipelines/compare/dmole.toml]")
    parser.add_argument("--results", type=Path, metavar="DIR", help="where the tables go [FOLDER/results]")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="cells worked on at once [1]")
    parser.add_argument("--force", action="store_true", help="make the chosen cells again, from their training on")
    return parser.parse_args()


if __name__ == "__main__":
    main()
