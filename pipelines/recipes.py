"""Which value of a training option suits each task: `python pipelines/recipes.py runs/rates learning-rate 1e-3 3e-3 6e-3`.

For every value and task one LoRA is trained from the pretrained backbone (method `finetune`, the parameters of `--budget 2%`)
and scored on the task's validation split; the learning rates of the task cards were chosen from such a table, and so was that
nothing drops out (`dropout 0 0.05`). With several `--seeds` a cell holds the mean and the standard deviation. Resumable: what is
finished is not repeated.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from statistics import fmean, stdev

from dmole_cli.artifacts.run import Run
from dmole_cli.cli.workspace import workspace
from dmole_cli.reports.collect import MethodReport, collect
from dmole_cli.settings.reading import read_settings

CONFIG = Path(__file__).with_name("sequence") / "dmole.toml"
METHOD = "finetune"
OPTIONS = ("learning-rate", "dropout", "batch-size", "epochs")


def trial(run: Path, option: list[str], seed: int, config: Path) -> MethodReport:
    """Train and score every task with one option and seed."""
    shared = ["--method", METHOD, "--run", str(run), "--config", str(config)]
    program = [sys.executable, "-m", "dmole_cli"]
    # The result belongs to stdout; what the stages say goes where people look.
    for command in (
        ["train-task", "--budget", "2%", "--seed", str(seed), *option],
        ["evaluate", "--stage", "all", "--split", "validation"],
    ):
        subprocess.run([*program, *command, *shared], check=True, stdout=sys.stderr)
    tasks = workspace(read_settings(config), Run(run)).config.tasks
    return collect(Run(run), tasks=tasks, methods=[METHOD], split="validation")[0]


def main() -> None:
    """Run all trials, print a row per rate as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="gets a run directory per value and seed")
    parser.add_argument("option", choices=OPTIONS, help="what is varied")
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
    """Mean over seeds with its standard deviation, or the one value."""
    found = [value for value in points if value is not None]
    if not found or len(found) < len(points):
        return "–"
    return f"{fmean(found):.1f}" + (f" ± {stdev(found):.1f}" if len(found) > 1 else "")


if __name__ == "__main__":
    main()
