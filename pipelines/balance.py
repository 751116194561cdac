"""Measure `train-router --balance`: `python pipelines/balance.py runs/balance`.

The routers of the stream are trained in three forms in which some of them accept samples of other tasks:

- `wide`: the threshold of the first task's router is `WIDE` times the 0.99 quantile of its losses, not once as of all others;
- `mixed`: samples of the next two tasks, `MIXED` of each, are among the training samples of the first task;
- `random`: all routers start at random, as in the reference implementation, and stop after a few epochs.

Every task's training samples are routed, which gives the use of the experts. The routers of experts that are used more than
others are then trained as `--balance` does, at every strength. All numbers are of the validation splits, a mean over the seeds:

- `largest` and `entropy`: the largest share of an expert in all activations; the entropy of the shares divided by its maximum;
- `own`: samples whose nearest expert is that of their own task; `others`: samples with an active expert of another task;
  `none`: samples without an expert;
- `accepted` and `loss`: of the own samples of the routers that were trained again, the share that these accept, and their
  reconstruction loss divided by that without the term; of `mixed`, only samples of the first task count as its own.

Only the backbone's routing features are needed: no experts are trained. Strength 0 is the state before.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from dmole_cli.artifacts.kinds import ROUTER
from dmole_cli.artifacts.provenance import Header
from dmole_cli.artifacts.router import RouterFile
from dmole_cli.artifacts.run import Run
from dmole_cli.cli.workspace import Workspace, workspace
from dmole_cli.routing.autoencoder import from_tensors
from dmole_cli.routing.balance import balance_for, crowded_out
from dmole_cli.routing.features import routing_features
from dmole_cli.routing.rules import top_candidates
from dmole_cli.settings.model import RouterSettings
from dmole_cli.settings.reading import read_settings
from dmole_cli.stages.train_router import build_balanced_router, build_router

CONFIG = Path(__file__).with_name("sequence") / "dmole.toml"
CASES = ("wide", "mixed", "random")
WIDE, NARROW = 5.0, 1.0  # thresholds of the spoilt router and of the others, over the 0.99 quantile of the losses
MIXED = 300
COLUMNS = ("largest", "entropy", "own", "others", "none", "accepted", "loss")

Features = Mapping[str, torch.Tensor]


def features_of(work: Workspace, split: str) -> dict[str, torch.Tensor]:
    """Routing features of a split of every task of the stream."""
    return {
        task: routing_features(task, split, data=work.data, backbone=work.model.load(), run=work.run)
        for task in work.settings.tasks
    }


def plain_routers(
    case: str, train: Features, chosen: RouterSettings, layout: list[dict], trained: dict[Any, RouterFile]
) -> dict[str, tuple[RouterFile, torch.Tensor, RouterSettings]]:
    """The routers of a case, with the features and the settings that trained them; `trained` is filled with routers."""
    first, *others = train
    routers, chosen = {}, chosen.updated(threshold_scale=NARROW)
    for task, rows in train.items():
        form = chosen.updated(start="random") if case == "random" else chosen
        if task == first and case == "wide":
            form = form.updated(threshold_scale=WIDE)
        if task == first and case == "mixed":
            rows = torch.cat([rows, *(train[name][:MIXED] for name in others[:2])])
        key = (task, len(rows), form)  # what is the same in several cases is trained once
        if key not in trained:
            trained[key] = build_router(rows, form, task=task, layout=layout, header=Header.of(ROUTER))[0]
        routers[task] = (trained[key], rows, form)
    return routers


def routed(routers: Mapping[str, RouterFile], features: Features) -> dict[str, list[list[str]]]:
    """The active experts of each sample, the nearest first, by the sample's task."""
    tasks, thresholds = list(routers), [router.threshold for router in routers.values()]
    table = {}
    for task, rows in features.items():
        losses = torch.stack([losses_of(router, rows) for router in routers.values()], dim=1).tolist()
        table[task] = [[tasks[t] for t in top_candidates(row, thresholds, most=2)] for row in losses]
    return table


@torch.no_grad()
def losses_of(router: RouterFile, rows: torch.Tensor) -> torch.Tensor:
    """Reconstruction losses of features."""
    return from_tensors(router.tensors, decoder=router.decoder).losses(rows)


def uses_of(active: Mapping[str, list[list[str]]]) -> dict[str, int]:
    """Number of samples in which each expert was active."""
    counts = Counter(name for rows in active.values() for row in rows for name in row)
    return {task: counts[task] for task in active}


def figures(
    before: Mapping[str, RouterFile], after: Mapping[str, RouterFile], changed: list[str], features: Features
) -> list[float]:
    """The values of `COLUMNS`; shares in percent."""
    active = routed(after, features)
    uses = uses_of(active)
    shares = [count / max(1, sum(uses.values())) for count in uses.values()]
    entropy = -sum(share * math.log(share) for share in shares if share) / math.log(len(shares))
    rows = [(task, row) for task, rows in active.items() for row in rows]
    own = fmean(row[:1] == [task] for task, row in rows)
    others = fmean(any(name != task for name in row) for task, row in rows)
    none = fmean(not row for _, row in rows)
    losses = {task: losses_of(after[task], features[task]) for task in changed}
    if not changed:
        return [100 * max(shares), entropy, 100 * own, 100 * others, 100 * none, math.nan, math.nan]
    accepted = fmean((losses[task] < after[task].threshold).float().mean().item() for task in changed)
    ratio = fmean((losses[task].mean() / losses_of(before[task], features[task]).mean()).item() for task in changed)
    return [100 * max(shares), entropy, *(100 * share for share in (own, others, none, accepted)), ratio]


def measured(
    case: str,
    train: Features,
    validation: Features,
    chosen: RouterSettings,
    strengths: list[float],
    *,
    run: Run,
    trained: dict[Any, RouterFile],
) -> Iterator[list[float]]:
    """The figures of a case before, and at each strength."""
    layout = [{"width": next(iter(train.values())).shape[1]}]
    made = plain_routers(case, train, chosen, layout, trained)
    before = {task: router for task, (router, _, _) in made.items()}
    uses = uses_of(routed(before, train))
    terms = {task: crowded_out(made[task][0], balance_for(task, uses, strength=1.0), run) for task in made}
    changed = [task for task, (term, _) in terms.items() if term]
    yield figures(before, before, changed, validation)
    for strength in strengths:
        after = dict(before)
        for task in changed:
            router, rows, form = made[task]
            term, others = terms[task]
            term = type(term)(strength, term.weights)
            after[task], _ = build_balanced_router(
                router, rows, others, term, form, task=task, header=Header.of(ROUTER)
            )
        yield figures(before, after, changed, validation)


def main() -> None:
    """Print a Markdown table with a row per case and strength."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="run directory for the features")
    parser.add_argument("--strengths", nargs="+", type=float, default=[0.1, 0.3, 1.0, 3.0], help="values of --balance")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="seeds of the routers [0 1 2]")
    parser.add_argument("--epochs", type=int, default=200, help="maximum number of epochs [200]")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES, help="forms of the routers [all]")
    parser.add_argument("--config", type=Path, default=CONFIG)
    options = parser.parse_args()
    work = workspace(read_settings(options.config), Run(options.folder))
    train, validation = features_of(work, "train"), features_of(work, "validation")
    print(f"| case | strength | {' | '.join(COLUMNS)} |")
    print("|" + "---|" * (len(COLUMNS) + 2))
    trained: dict[Any, RouterFile] = {}
    for case in options.cases:
        seeds = [work.settings.router.updated(seed=seed, epochs=options.epochs) for seed in options.seeds]
        tables = [
            measured(case, train, validation, chosen, options.strengths, run=work.run, trained=trained)
            for chosen in seeds
        ]
        for strength, rows in zip([0.0, *options.strengths], zip(*tables, strict=True), strict=True):
            means = [fmean(column) for column in zip(*rows, strict=True)]
            formats = [
                f"{value:.{2 if name in ('entropy', 'loss') else 1}f}"
                for name, value in zip(COLUMNS, means, strict=True)
            ]
            print(f"| {case} | {strength:g} | {' | '.join(formats)} |", flush=True)


if __name__ == "__main__":
    main()
