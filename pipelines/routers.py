"""The routers of the stream in several forms, side by side: `python pipelines/routers.py runs/routers`.

Trains all routers with a sigmoid and with a linear decoder, started at the mean of the features or at random as the
reference does, and asks each of them about every task's validation split: which share of the samples does it accept, and
how often is a sample's own task among the two nearest that accept it? `--scales` asks again with all thresholds multiplied.
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
from dmole_cli.routing.autoencoder import from_tensors
from dmole_cli.routing.features import routing_features
from dmole_cli.routing.rules import top_candidates
from dmole_cli.settings.reading import read_settings

CONFIG = Path(__file__).with_name("sequence") / "dmole.toml"
FORMS = [(decoder, start) for decoder in ("sigmoid", "linear") for start in ("mean", "random")]


def train(run: Path, decoder: str, start: str, *, epochs: int, config: Path) -> list[dict]:
    """The routers of one form; gives what the subcommand says of each."""
    options = [
        "--decoder",
        decoder,
        "--start",
        start,
        "--epochs",
        str(epochs),
        "--run",
        str(run),
        "--config",
        str(config),
    ]
    command = [sys.executable, "-m", "dmole_cli", "train-router", *options, "--force", "--json"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def losses_of(session: Workspace) -> tuple[dict[str, list[list[float]]], list[float]]:
    """Task -> losses of its validation samples under every router [sample][router]; the routers' thresholds."""
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
    """Train all forms, print a row per form and task as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="gets a run directory per form")
    parser.add_argument("--epochs", type=int, default=1000, help="at most")
    parser.add_argument(
        "--scales", nargs="+", type=float, default=[1.0], metavar="FACTOR", help="on all thresholds [1]"
    )
    parser.add_argument("--config", type=Path, default=CONFIG)
    options = parser.parse_args()
    folder = options.folder
    tasks = workspace(read_settings(options.config), Run(folder)).config.tasks
    accepting = " | ".join(f"accepted by {t}" for t in tasks)
    print(f"| decoder, start | epochs | scale | samples of | {accepting} | own among two nearest |")
    print("|" + "---|" * (len(tasks) + 5))
    for number, (decoder, start) in enumerate(FORMS):
        run = Run(folder / f"{decoder}-{start}")
        if number:  # features depend on the backbone and the data alone
            shutil.copytree(folder / "-".join(FORMS[0]) / "features", run.root / "features", dirs_exist_ok=True)
        ran = [
            outcome["epochs"]
            for outcome in train(run.root, decoder, start, epochs=options.epochs, config=options.config)
        ]
        table, thresholds = losses_of(workspace(read_settings(options.config), run))
        form = f"{decoder}, {start} | {min(ran)}–{max(ran)}"
        for scale in options.scales:
            for row in shares(table, [scale * threshold for threshold in thresholds], tasks):
                print(f"| {form} | {scale:g} | {row} |", flush=True)


def shares(table: dict[str, list[list[float]]], thresholds: list[float], tasks: Sequence[str]) -> Iterator[str]:
    """A row per task: what each router accepts of its samples, and how often their own is among the two nearest, in %."""
    for task, rows in table.items():
        accepted = [100 * fmean(row[t] < thresholds[t] for row in rows) for t in range(len(tasks))]
        own = "–"
        if task in tasks:
            right = [tasks.index(task) in top_candidates(row, thresholds, most=2) for row in rows]
            own = f"{100 * fmean(right):.1f}"
        yield " | ".join([task, *(f"{share:.1f}" for share in accepted), own])


if __name__ == "__main__":
    main()
