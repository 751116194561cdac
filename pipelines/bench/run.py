"""Run all benchmarks: `python pipelines/bench/run.py`.

Prints each result with its quartiles and target, and writes all to bench.json. A benchmark is a file of this folder:

    python pipelines/bench/run.py --only layer decode        # some of them
    python pipelines/bench/run.py --rounds 30                # less noise
    python pipelines/bench/run.py --only backward            # the hand-written backward pass against plain autograd
    python pipelines/bench/run.py --only compiled            # torch.compile; takes minutes and needs a C++ compiler
    python pipelines/bench/run.py --only rows                # a training file of a million rows
    python pipelines/bench/run.py --only memory              # memory of all processes of a training with large images
    python pipelines/bench/run.py --only ranks               # the routed layer by the rank of its experts
    python pipelines/bench/run.py --only plan                # estimated against measured memory of processes
    python pipelines/bench/run.py --only pages               # pages of a large comparison and of a long run
    python pipelines/bench/run.py --only gpu                 # all of gpu-layer, gpu-step, gpu-profile and gpu-decode
    python pipelines/bench/run.py --only gpu-stages          # all stages by the command line, on a GPU

Every result is printed to stderr, and written to the file, as soon as it is known.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipelines.bench._timing import Row

FOLDER = Path(__file__).parent
NAMES = sorted(
    path.stem.replace("_", "-") for path in FOLDER.glob("*.py") if not path.stem.startswith("_") and path.stem != "run"
)
# Not part of a run without --only.
ONLY_BY_NAME = ("backward", "compiled", "gpu-stages", "memory", "pages", "plan", "processes", "ranks", "rows")
GROUPS = {"gpu": [name for name in NAMES if name.startswith("gpu-") and name not in ONLY_BY_NAME]}


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmarks."""
    options = _options(arguments)
    # One thread, without spinning while it waits; both variables are read when torch is imported.
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "KINETO_LOG_LEVEL": "99"}
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Files of this folder must not shadow libraries of the same name.
    sys.path[0] = str(FOLDER.parents[1])
    import torch

    from dmole_cli.errors import DmoleError
    from pipelines.bench._timing import failed

    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    rows, skipped = [], []
    chosen = options.only or [name for name in NAMES if name not in ONLY_BY_NAME]
    for name in [part for group in chosen for part in GROUPS.get(group, [group])]:
        started = time.perf_counter()
        try:
            module = importlib.import_module(f"pipelines.bench.{name.replace('-', '_')}")
            for row in module.compare(rounds=options.rounds, tiny=options.tiny):
                rows.append(row)
                print(f"  {_line(row)}", file=sys.stderr, flush=True)
                _write(rows, options.out)
        except DmoleError as error:  # the packages of the stream are not installed, or there is no compiler
            skipped.append(f"{name}: {error.message} ({error.hint})")
        except Exception as error:  # the others still run
            traceback.print_exc()
            rows.append(failed(f"{name}: its other results", repr(error)))
        print(f"{name}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    _write(rows, options.out)
    _show(rows)
    for reason in skipped:
        print(f"skipped: {reason}", file=sys.stderr)
    sys.exit(1 if skipped or any(row.error for row in rows) else 0)


def _write(rows: list[Row], path: Path) -> None:
    path.write_text(json.dumps([row.as_dict() for row in rows], indent=2) + "\n", encoding="utf-8")


def _line(row: Row) -> str:
    words = "" if row.target is None else f" (target {'≥' if row.at_least else '≤'} {row.target:g})"
    return f"{row.name}: {row.error or _number(row.ratio)}{words}"


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only",
        nargs="+",
        choices=[*NAMES, *GROUPS],
        metavar="NAME",
        help=f"some of {', '.join(NAMES)}, or gpu for its parts [all but {', '.join(ONLY_BY_NAME)}]",
    )
    parser.add_argument("--out", type=Path, default=Path("bench.json"), help="file of the results [bench.json]")
    parser.add_argument("--rounds", type=int, help="rounds of timings [each benchmark's own]")
    parser.add_argument(
        "--tiny", action="store_true", help="tiny sizes, to check that everything runs; the results mean nothing"
    )
    return parser.parse_args(arguments)


def _show(rows: list[Row]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("comparison", "result", "quartiles", "target", "")
    for column in table.columns[1:]:
        column.justify = "right"
    words = {True: "met", False: "not met", None: ""}
    for row in rows:
        spread = f"{_number(row.low)} .. {_number(row.high)}" if row.low < row.high else ""
        target = "" if row.target is None else f"{'≥' if row.at_least else '≤'} {row.target:g}"
        table.add_row(row.name, _number(row.ratio), spread, target, row.error or words[row.met])
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def _number(value: float) -> str:
    if math.isnan(value):
        return "–"
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.2g}" if abs(value) < 0.1 else f"{value:.2f}"


if __name__ == "__main__":
    main()
