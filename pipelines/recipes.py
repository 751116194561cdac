"""Compare values of a training option per task: `python pipelines/recipes.py runs/rates learning-rate 1e-3 3e-3 6e-3`.

For every value and task, one LoRA is trained from the pretrained backbone (method `finetune`, `--budget 2%`) and scored on
the task's validation split. The learning rates of the task cards and the default dropout of 0 (`dropout 0 0.05`) were chosen
from such tables. With several `--seeds`, the table shows means and standard deviations. An interrupted run resumes when it is
started again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from statistics import fmean, stdev

from dmole_cli.artifacts.run import Run
from dmole_cli.data.card import task_name
from dmole_cli.reports.collect import MethodReport, collect
from dmole_cli.settings.reading import read_settings

CONFIG = Path(__file__).with_name("sequence") / "dmole.toml"
METHOD = "finetune"
OPTIONS = ("learning-rate", "dropout", "batch-size", "epochs")


def trial(run: Path, option: list[str], seed: int, config: Path) -> MethodReport:
    """Train and score every task with one value and seed."""
    shared = ["--method", METHOD, "--run", str(run), "--config", str(config)]
    program = [sys.executable, "-m", "dmole_cli"]
    # stdout is reserved for the table.
    for command in (
        ["train-task", "--budget", "2%", "--seed", str(seed), *option],
        ["evaluate", "--stage", "all", "--split", "validation"],
    ):
        subprocess.run([*program, *command, *shared], check=True, stdout=sys.stderr)
    tasks = [task_name(task) for task in read_settings(config).tasks]
    return collect(Run(run), tasks=tasks, methods=[METHOD], split="validation")[0]


def main() -> None:
    """Run all trials and print a Markdown table with a row per value."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="folder for a run directory per value and seed")
    parser.add_argument("option", choices=OPTIONS, help="training option")
    parser.add_argument("values", nargs="+")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--config", type=Path, default=CONFIG)
    given = parser.parse_args()
    reports = {
        value: [
            trial(
                given.folder / f"{given.option}-{value}-seed-{seed}", [f"--{given.option}", value], seed, given.config
            )
            for seed in given.seeds
        ]
        for value in given.values
    }
    tasks = next(iter(reports.values()))[0].tasks
    print(f"| {given.option} | {' | '.join(tasks)} |")
    print("|" + "---|" * (len(tasks) + 1))
    for value, runs in reports.items():
        columns = zip(*(report.quantities["last"] for report in runs), strict=True)
        print(f"| {value} | {' | '.join(shown(list(column)) for column in columns)} |")


def shown(points: list[float | None]) -> str:
    """Mean ± standard deviation over the seeds; without the deviation for one seed."""
    found = [value for value in points if value is not None]
    if not found or len(found) < len(points):
        return "–"
    return f"{fmean(found):.1f}" + (f" ± {stdev(found):.1f}" if len(found) > 1 else "")


if __name__ == "__main__":
    main()
