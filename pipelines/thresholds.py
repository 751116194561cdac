"""Compare rules for the thresholds of routers: `python pipelines/thresholds.py runs/thresholds`.

Trains the routers of a stream, and gives them the thresholds of each rule. All numbers are percent of the validation splits, a
mean over the tasks and the seeds of the routers, with all thresholds multiplied by each of `FACTORS` in turn:

- `own`: samples that the router of their own task accepts, and in parentheses the smallest share of a task;
- `others`: samples of the other trained tasks that a router accepts;
- `right`: samples whose first active expert is that of their own task;
- `second`: samples with a second active expert;
- `unseen`: samples of the tasks that are never trained, with an active expert;
- `changed`: samples of all tasks, those never trained included, whose active experts are not those at factor 1. Scores can change
  by these samples alone.

A rule reads what is known when the router is trained: reconstruction losses of held-out samples of its own task, and, for
`between`, of the training samples of earlier tasks.

- `quantile x f`: the 0.99 quantile of the own losses, multiplied by f.
- `deviations k`: exp(median + k * 1.4826 * median absolute deviation) of the logarithms of the own losses.
- `prediction p`: the upper limit at p of a further loss, if the logarithms are normal: from their mean, their standard deviation,
  and Student's t.
- `between`: the geometric mean of the 0.99 quantile of the own losses and the lowest 0.01 quantile of an earlier task's, at least
  the former, at most twice the former. Without an earlier task, twice the former.

Only the backbone's routing features are needed: no experts are trained.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean

import torch
from scipy.stats import t as student

from dmole_cli.artifacts.kinds import ROUTER
from dmole_cli.artifacts.provenance import Header
from dmole_cli.artifacts.run import Run
from dmole_cli.cli.workspace import Workspace, workspace
from dmole_cli.routing.autoencoder import Autoencoder, Routers, from_tensors
from dmole_cli.routing.features import routing_features
from dmole_cli.routing.rules import top_candidates
from dmole_cli.settings.model import RouterSettings
from dmole_cli.settings.reading import read_settings
from dmole_cli.stages.train_router import build_router, divided

CONFIG = Path(__file__).with_name("compare") / "dmole.toml"
FACTORS = (0.8, 0.9, 1.0, 1.1, 1.25)
COLUMNS = ("own", "others", "right", "second", "unseen", "changed")
LEVEL = 0.99

Features = Mapping[str, torch.Tensor]
Active = Mapping[str, list[list[int]]]


@dataclass(frozen=True)
class Known:
    """Reconstruction losses under a router when it is trained: of held-out samples of its task, and of each earlier task."""

    own: torch.Tensor
    earlier: Sequence[torch.Tensor]


def quantile(known: Known, factor: float) -> float:
    """The threshold of `quantile x f`."""
    return torch.quantile(known.own, LEVEL).item() * factor


def deviations(known: Known, count: float) -> float:
    """The threshold of `deviations k`."""
    logs = known.own.log()
    middle = logs.median()
    return math.exp(middle + count * 1.4826 * (logs - middle).abs().median())


def prediction(known: Known, level: float) -> float:
    """The threshold of `prediction p`."""
    logs, count = known.own.double().log(), len(known.own)
    return math.exp(logs.mean() + student.ppf(level, count - 1) * logs.std() * math.sqrt(1 + 1 / count))


def between(known: Known, most: float) -> float:
    """The threshold of `between`."""
    own = quantile(known, 1)
    nearest = min((torch.quantile(losses, 1 - LEVEL).item() for losses in known.earlier), default=math.inf)
    return max(own, min(math.sqrt(own * nearest), most * own))


RULES: dict[str, Callable[[Known], float]] = {
    **{f"quantile x {factor:g}": partial(quantile, factor=factor) for factor in (1, 1.25, 1.5, 1.75, 2, 2.5)},
    **{f"deviations {count}": partial(deviations, count=count) for count in (3, 4, 5)},
    **{f"prediction {level:g}": partial(prediction, level=level) for level in (0.99, 0.999)},
    "between": partial(between, most=2),
}


def features_of(work: Workspace, split: str, tasks: Sequence[str]) -> dict[str, torch.Tensor]:
    """Routing features of a split of tasks."""
    return {
        task: routing_features(task, split, data=work.data, backbone=work.model.load(), run=work.run) for task in tasks
    }


def trained_routers(
    train: Features, chosen: RouterSettings, layout: list[dict]
) -> tuple[list[Autoencoder], list[Known]]:
    """The routers of all tasks in their order, and what is known of each when it is trained."""
    routers, known = [], []
    for task, features in train.items():
        file, _ = build_router(features, chosen, task=task, layout=layout, header=Header.of(ROUTER))
        router = from_tensors(file.tensors, decoder=file.decoder)
        earlier = [router.losses(train[name]) for name in list(train)[: len(routers)]]
        known.append(Known(router.losses(divided(features, chosen, task)[1]), earlier))
        routers.append(router)
    return routers, known


def active_experts(losses: Mapping[str, list[list[float]]], thresholds: Sequence[float]) -> Active:
    """Active experts of every sample, by task of the sample."""
    return {task: [top_candidates(row, thresholds, most=2) for row in rows] for task, rows in losses.items()}


def measures(
    losses: Mapping[str, list[list[float]]], thresholds: Sequence[float], tasks: Sequence[str], *, base: Active
) -> dict[str, list[float]]:
    """Column -> percent by task, or by pair of router and other task."""
    active = active_experts(losses, thresholds)
    accepted = {
        (task, index): 100 * fmean(row[index] < threshold for row in losses[task])
        for task in tasks
        for index, threshold in enumerate(thresholds)
    }
    own = {task: index for index, task in enumerate(tasks)}
    unseen = [task for task in losses if task not in own]
    return {
        "own": [accepted[task, index] for task, index in own.items()],
        "others": [share for (task, index), share in accepted.items() if index != own[task]],
        "right": [100 * fmean(found[:1] == [index] for found in active[task]) for task, index in own.items()],
        "second": [100 * fmean(len(found) > 1 for found in active[task]) for task in tasks],
        "unseen": [100 * fmean(bool(found) for found in active[task]) for task in unseen],
        "changed": [
            100 * fmean(set(new) != set(old) for new, old in zip(active[task], base[task], strict=True))
            for task in losses
        ],
    }


def table(work: Workspace, seeds: Sequence[int]) -> dict[str, dict[str, list[list[float]]]]:
    """Rule -> column -> for each of `FACTORS` the percentages of all tasks and seeds."""
    tasks = work.settings.tasks
    train = features_of(work, "train", tasks)
    tested = features_of(work, "validation", (*tasks, *work.settings.unseen))
    found = {rule: {column: [[] for _ in FACTORS] for column in COLUMNS} for rule in RULES}
    for seed in seeds:
        chosen = work.settings.router.updated(seed=seed)
        routers, known = trained_routers(train, chosen, work.model.load().feature_layout())
        losses = {task: Routers(routers).losses(features).tolist() for task, features in tested.items()}
        for rule, threshold_of in RULES.items():
            thresholds = [threshold_of(one) for one in known]
            base = active_experts(losses, thresholds)
            for index, factor in enumerate(FACTORS):
                scaled = [factor * threshold for threshold in thresholds]
                for column, values in measures(losses, scaled, tasks, base=base).items():
                    found[rule][column][index] += values
    return found


def shown(column: str, values: Sequence[Sequence[float]]) -> str:
    """The percentages of a column at all factors."""
    lowest = column == "own"
    texts = [
        f"{round(fmean(shares), 1):g}" + (f" ({round(min(shares), 1):g})" if lowest else "")
        for shares in values
        if shares
    ]
    return " / ".join(texts) or "–"


def main() -> None:
    """Print a Markdown table with a row per rule; a cell has the values at all factors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run directory of the features")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the routers [0 1 2]")
    parser.add_argument("--config", type=Path, default=CONFIG)
    options = parser.parse_args()
    found = table(workspace(read_settings(options.config), Run(options.run)), options.seeds)
    print(f"| rule, at {' / '.join(f'{factor:g}' for factor in FACTORS)} | {' | '.join(COLUMNS)} |")
    print("|" + "---|" * (len(COLUMNS) + 1))
    for rule, columns in found.items():
        print(f"| {rule} | {' | '.join(shown(column, columns[column]) for column in COLUMNS)} |")


if __name__ == "__main__":
    main()
