"""Which peak learning rate suits each task: `python pipelines/rates.py runs/rates 1e-3 3e-3 6e-3`.

For every rate and task one LoRA is trained from the pretrained backbone (method `finetune`, the parameters of `--budget 2%`)
and scored on the task's validation split; the recipes of the task cards were chosen from this table. Resumable: what is
finished is not repeated.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from dmole_cli.artifacts.layout import Run
from dmole_cli.config import read_config
from dmole_cli.reports.summary import MethodReport, collect

CONFIG = Path(__file__).with_name("sequence") / "dmole.toml"
METHOD = "finetune"


def dmole(*arguments: str) -> None:
    """Run a subcommand as a user would."""
    subprocess.run(
        [sys.executable, "-m", "dmole_cli", *arguments, "--config", str(CONFIG), "--method", METHOD], check=True
    )


def trial(run: Path, rate: str) -> MethodReport:
    """Train and score every task at one rate."""
    dmole("train-task", "--run", str(run), "--budget", "2%", "--learning-rate", rate)
    dmole("evaluate", "--run", str(run), "--stage", "all", "--split", "validation")
    return collect(Run(run), tasks=read_config(CONFIG).tasks, methods=[METHOD], split="validation")[0]


def main() -> None:
    """Run all trials, print a row per rate as Markdown."""
    folder, *rates = sys.argv[1:]
    reports = {rate: trial(Path(folder) / f"rate-{rate}", rate) for rate in rates}
    tasks = read_config(CONFIG).tasks
    print(f"| peak rate | {' | '.join(tasks)} |")
    print("|" + "---|" * (len(tasks) + 1))
    for rate, report in reports.items():
        points = ["–" if value is None else f"{value:.1f}" for value in report.quantities["last"]]
        print(f"| {rate} | {' | '.join(points)} |")


if __name__ == "__main__":
    main()
