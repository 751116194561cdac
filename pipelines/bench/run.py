"""All comparisons, one after the other: `python pipelines/bench/run.py`.

Prints each figure with its spread and what was asked for, and writes them to bench.json. A comparison is a file of this folder:

    python pipelines/bench/run.py --only layer decode        # some of them
    python pipelines/bench/run.py --rounds 30                # quieter figures
    python pipelines/bench/run.py --only compiled            # torch.compile, which takes minutes and wants a C++ compiler
    python pipelines/bench/run.py --only rows                # a training file of a million rows
    python pipelines/bench/run.py --only plan                # memory that is planned beside memory that is used, in processes
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipelines.bench._timing import Row

FOLDER = Path(__file__).parent
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("_") and path.stem != "run")
WHEN_NAMED = ("compiled", "plan", "rows")  # not worth everybody's minutes


def main(arguments: list[str] | None = None) -> None:
    """Run what was asked for."""
    options = _options(arguments)
    # One thread, and one that does not spin while it waits; both are read when torch is imported.
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "KINETO_LOG_LEVEL": "99"}
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # This folder's own files must not stand in for libraries of the same name.
    sys.path[0] = str(FOLDER.parents[1])
    import torch

    from dmole_cli.errors import DmoleError

    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    rows, left_out = [], []
    for name in options.only or [name for name in NAMES if name not in WHEN_NAMED]:
        started = time.perf_counter()
        try:
            module = importlib.import_module(f"pipelines.bench.{name}")
            rows += module.compare(rounds=options.rounds, tiny=options.tiny)
        except DmoleError as error:  # the packages of the stream are not installed, or there is no compiler
            left_out.append(f"{name}: {error.message} ({error.hint})")
        print(f"{name}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    options.out.write_text(json.dumps([row.as_dict() for row in rows], indent=2) + "\n", encoding="utf-8")
    _show(rows)
    if importlib.util.find_spec("peft") is None:
        print("peft is not installed, so nothing was compared with it (pip install peft)", file=sys.stderr)
    for reason in left_out:
        print(f"left out: {reason}", file=sys.stderr)
    sys.exit(1 if left_out else 0)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only",
        nargs="+",
        choices=NAMES,
        metavar="NAME",
        help=f"some of {', '.join(NAMES)} [all but {', '.join(WHEN_NAMED)}]",
    )
    parser.add_argument("--out", type=Path, default=Path("bench.json"), help="where the figures go [bench.json]")
    parser.add_argument("--rounds", type=int, help="rounds of what is timed [each comparison's own]")
    parser.add_argument("--tiny", action="store_true", help="sizes that say nothing, to see that everything runs")
    return parser.parse_args(arguments)


def _show(rows: list[Row]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("comparison", "figure", "quartiles", "asked for", "")
    for column in table.columns[1:]:
        column.justify = "right"
    words = {True: "met", False: "not met", None: ""}
    for row in rows:
        spread = f"{_number(row.low)} .. {_number(row.high)}" if row.low != row.high else ""
        asked = "" if row.reach is None else f"{'≥' if row.at_least else '≤'} {row.reach:g}"
        table.add_row(row.name, _number(row.ratio), spread, asked, words[row.met])
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def _number(value: float) -> str:
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.2g}" if abs(value) < 0.1 else f"{value:.2f}"


if __name__ == "__main__":
    main()
