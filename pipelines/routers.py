"""Compare several forms of the routers: `python pipelines/routers.py runs/routers`.

Trains all routers with a sigmoid and with a linear decoder, initialized so that it reconstructs the mean of the features, or
randomly as in the reference. Applies each router to every task's validation split: the share of samples that it accepts, and
how often a sample's own task is among the two nearest that accept it. Thresholds are the 0.99 quantile of the losses, multiplied
by each of `--scales`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean

from dmole_cli.artifacts.router import read_router
from dmole_cli.artifacts.run import Run
from dmole_cli.cli.workspace import Workspace, workspace
from dmole_cli.data.card import task_name
from dmole_cli.routing.autoencoder import from_tensors
from dmole_cli.routing.features import routing_features
from dmole_cli.routing.rules import top_candidates
from dmole_cli.settings.reading import read_settings

CONFIG = Path(__file__).with_name("sequence") / "dmole.toml"
FORMS = [(decoder, start) for decoder in ("sigmoid", "linear") for start in ("mean", "random")]


def train(run: Path, decoder: str, start: str, *, epochs: int, config: Path) -> list[dict]:
    """Train the routers of one form; returns the command's JSON output, an object per router."""
    options = {"decoder": decoder, "start": start, "epochs": epochs, "threshold-scale": 1, "run": run, "config": config}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "dmole_cli", "train-router", *words, "--force", "--json"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def losses_of(session: Workspace) -> tuple[dict[str, list[list[float]]], list[float]]:
    """(task -> reconstruction losses of its validation samples [sample][router], thresholds of the routers)."""
    run, tasks = session.run, session.settings.tasks
    files = [read_router(run.router(task)) for task in tasks]
    routers = [from_tensors(file.tensors, decoder=file.decoder) for file in files]
    table = {}
    for task in (*tasks, *session.settings.unseen):
        features = routing_features(
            task, "validation", data=session.data, backbone=session.model.load(), run=session.run
        )
        table[task] = [list(row) for row in zip(*(r.losses(features).tolist() for r in routers), strict=True)]
    return table, [file.threshold for file in files]


def main() -> None:
    """Train all forms and print a Markdown table with a row per form, scale and task."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="folder for a run directory per form")
    parser.add_argument("--epochs", type=int, default=1000, help="maximum number of epochs [1000]")
    parser.add_argument(
        "--scales", nargs="+", type=float, default=[1.0], metavar="FACTOR", help="thresholds over that quantile [1]"
    )
    parser.add_argument("--config", type=Path, default=CONFIG)
    options = parser.parse_args()
    folder = options.folder
    tasks = [task_name(task) for task in read_settings(options.config).tasks]
    accepting = " | ".join(f"accepted by {t}" for t in tasks)
    print(f"| decoder, start | epochs | scale | samples of | {accepting} | own among two nearest |")
    print("|" + "---|" * (len(tasks) + 5))
    for number, (decoder, start) in enumerate(FORMS):
        run = Run(folder / f"{decoder}-{start}")
        if number:  # features depend only on the backbone and the data
            shutil.copytree(folder / "-".join(FORMS[0]) / "features", run.root / "features", dirs_exist_ok=True)
        outcomes = train(run.root, decoder, start, epochs=options.epochs, config=options.config)
        epochs = [outcome["epochs"] for outcome in outcomes]
        table, thresholds = losses_of(workspace(read_settings(options.config), run))
        form = f"{decoder}, {start} | {min(epochs)}–{max(epochs)}"
        for scale in options.scales:
            for row in shares(table, [scale * threshold for threshold in thresholds], tasks):
                print(f"| {form} | {scale:g} | {row} |", flush=True)


def shares(table: dict[str, list[list[float]]], thresholds: list[float], tasks: Sequence[str]) -> Iterator[str]:
    """A row per task: samples that each router accepts, and samples whose own task is among the two nearest, in percent."""
    for task, rows in table.items():
        accepted = [100 * fmean(row[t] < thresholds[t] for row in rows) for t in range(len(tasks))]
        own = "–"
        if task in tasks:
            right = [tasks.index(task) in top_candidates(row, thresholds, most=2) for row in rows]
            own = f"{100 * fmean(right):.1f}"
        yield " | ".join([task, *(f"{share:.1f}" for share in accepted), own])


if __name__ == "__main__":
    main()
