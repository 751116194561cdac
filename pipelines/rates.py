"""Which peak learning rate suits each task: `python pipelines/rates.py runs/rates 1e-3 3e-3 6e-3`.

For every rate and task one LoRA is trained from the pretrained backbone (method `finetune`, the parameters of `--budget 2%`)
and scored on the task's validation split; the recipes of the task cards were chosen from this table. Resumable: what is
finished is not repeated.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from dmole_cli.artifacts.layout import Run
from dmole_cli.config import read_config
from dmole_cli.reports.summary import MethodReport, collect
from dmole_cli.session import Session

CONFIG = Path(__file__).with_name("sequence") / "dmole.toml"
METHOD = "finetune"


def trial(run: Path, rate: str, config: Path) -> MethodReport:
    """Train and score every task at one rate."""
    shared = ["--method", METHOD, "--run", str(run), "--config", str(config)]
    program = [sys.executable, "-m", "dmole_cli"]
    # The result belongs to stdout; what the stages say goes where people look.
    for command in (
        ["train-task", "--budget", "2%", "--learning-rate", rate],
        ["evaluate", "--stage", "all", "--split", "validation"],
    ):
        subprocess.run([*program, *command, *shared], check=True, stdout=sys.stderr)
    tasks = Session(read_config(config), Run(run)).config.tasks
    return collect(Run(run), tasks=tasks, methods=[METHOD], split="validation")[0]


def main() -> None:
    """Run all trials, print a row per rate as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="gets a run directory per rate")
    parser.add_argument("rates", nargs="+", help="peak learning rates")
    parser.add_argument("--config", type=Path, default=CONFIG)
    options = parser.parse_args()
    reports = {rate: trial(options.folder / f"rate-{rate}", rate, options.config) for rate in options.rates}
    tasks = next(iter(reports.values())).tasks
    print(f"| peak rate | {' | '.join(tasks)} |")
    print("|" + "---|" * (len(tasks) + 1))
    for rate, report in reports.items():
        points = ["–" if value is None else f"{value:.1f}" for value in report.quantities["last"]]
        print(f"| {rate} | {' | '.join(points)} |")


if __name__ == "__main__":
    main()
