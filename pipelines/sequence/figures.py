"""Summarize finished runs of the sequence: `python pipelines/sequence/figures.py runs/seed-0 runs/seed-1 ...`.

Reads evaluations and costs; prints means and sample standard deviations over the runs (seeds) as Markdown tables.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from dmole_cli.artifacts.run import Run
from dmole_cli.reports.collect import MethodReport, collect
from dmole_cli.reports.costs import profiling_share
from dmole_cli.settings.reading import read_settings

CONFIG = Path(__file__).with_name("dmole.toml")
MAIN, BASELINE, BOUND = "d-mole", "seq-ft", "finetune"  # the methods of run.sh


def spread(values: list[float]) -> str:
    """Mean ± sample standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.1f} ± {deviation:.1f}"


def by_method(runs: list[Run]) -> dict[str, list[MethodReport]]:
    """The reports of each method, one per run; methods in the order of the first run."""
    tasks = read_settings(CONFIG).tasks
    found: dict[str, list[MethodReport]] = {}
    for run in runs:
        for report in collect(run, tasks=tasks):
            found.setdefault(report.method, []).append(report)
    return found


def score_table(methods: dict[str, list[MethodReport]]) -> list[str]:
    """A row per method and quantity, a column per task, then the means."""
    tasks = next(iter(methods.values()))[0].tasks
    lines = [f"| method | | {' | '.join(tasks)} | mean | without CIDEr |", "|" + "---|" * (len(tasks) + 4)]
    for method, reports in methods.items():
        for quantity in ("last", "avg", "bwt"):
            columns = [[report.quantities[quantity][i] for report in reports] for i in range(len(tasks))]
            columns += [[r.mean[quantity] for r in reports], [r.mean_of_bounded[quantity] for r in reports]]
            texts = [spread(c) if all(v is not None for v in c) else "–" for c in columns]
            lines.append(f"| {method} | {quantity} | {' | '.join(texts)} |")
    return lines


def figures(methods: dict[str, list[MethodReport]], runs: list[Run]) -> list[str]:
    """The key figures of the sequence: accuracy relative to the bound, forgetting, routing and costs."""
    ours, baseline, bound = methods[MAIN], methods[BASELINE], methods[BOUND]
    lines = ["", "| figure | value |", "|---|---|"]

    def row(name: str, values: list[float]) -> None:
        lines.append(f"| {name} | {spread(values)} |")

    relative = [100 * a.mean["last"] / b.mean["last"] for a, b in zip(ours, bound, strict=True)]
    row(f"{MAIN} mean Last, % of {BOUND}'s", relative)
    row(f"{MAIN} mean BWT, points", [r.mean["bwt"] for r in ours])
    row(f"{BASELINE} mean BWT, points", [r.mean["bwt"] for r in baseline])
    row("routing accuracy, %", [100 * statistics.fmean(v for v in r.routing.values() if v is not None) for r in ours])
    for task in ours[0].unseen:
        change = [abs(r.unseen[task]["last"] - r.unseen[task]["zero_shot"]) for r in ours]
        row(f"{task} (never trained): |R[T] - R[0]|, points", change)
        row(f"{task} (never trained): samples without expert, %", [100 * r.unseen[task]["no_expert"] for r in ours])
    row("profiling, % of training seconds", [100 * profiling_share(run) for run in runs])
    for method, reports in methods.items():
        lines.append(f"| trainable parameters, {method} | {reports[0].trainable_parameters} |")
    return lines


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", help="run directories, one per seed")
    parser.add_argument("--shared", type=Path, help="folder of their shared profiles, features and routers")
    options = parser.parse_args()
    runs = [Run(folder, options.shared) for folder in options.runs]
    methods = by_method(runs)
    print("\n".join(score_table(methods) + figures(methods, runs)))


if __name__ == "__main__":
    main()
