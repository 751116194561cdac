"""The usage-aware objective of a router: it rejects inputs of tasks whose experts are used less than its own.

The authors of D-MoLE (arXiv 2506.11672) named such an objective as future work. A router is first trained on its own task alone,
which gives the threshold m. It is then trained further on

    mean of loss(x) over its own features + strength * mean over the crowded-out tasks e of w_e * mean of max(0, m - loss(y)),

y being the features of task e, and w_e = 1 - (uses of its expert) / (uses of the router's expert). A task is crowded out where
its expert is used less and the router accepts at least `CROWDED` of its training features. The threshold is at most m.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from dmole_cli.artifacts.features import read_features
from dmole_cli.artifacts.provenance import Header
from dmole_cli.artifacts.router import RouterFile
from dmole_cli.artifacts.run import Run
from dmole_cli.routing.autoencoder import Autoencoder, from_tensors, minimise
from dmole_cli.settings.model import RouterSettings

SETTING = "balance"  # its name in a router's header
CROWDED = 0.01  # about what a threshold at the 0.99 quantile leaves out of a task's own features
MAX_ROWS = 8192  # of another task that are read, at equal distances
DIGITS = 4  # of recorded weights and reported shares


@dataclass(frozen=True)
class Balance:
    """The usage-aware term of one router.

    Attributes:
        strength: its weight beside the reconstruction of the router's own features; 0 for none.
        weights: other task -> how much less its expert is used, over 0 and at most 1.
    """

    strength: float = 0.0
    weights: Mapping[str, float] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return self.strength > 0 and bool(self.weights)

    def only(self, tasks: Collection[str]) -> Balance:
        """The term of these tasks alone; none where nothing is left."""
        weights = {name: weight for name, weight in self.weights.items() if name in tasks}
        return Balance(self.strength, weights) if self and weights else Balance()

    def for_header(self) -> dict[str, Any]:
        """What a router's header records among its settings; nothing where there is no such term."""
        return {SETTING: {"strength": self.strength, "weights": dict(sorted(self.weights.items()))}} if self else {}


def recorded_balance(header: Header | None) -> Balance:
    """The term that a router was trained with; none for a router that does not exist."""
    stated = header.settings.get(SETTING) if header is not None else None
    return Balance(stated["strength"], stated["weights"]) if stated else Balance()


def balance_for(task: str, uses: Mapping[str, int], *, strength: float, before: Balance = Balance()) -> Balance:
    """The term of a router that follows from the use of the experts.

    Args:
        task: of the router.
        uses: task -> number of requests in which its expert was active.
        strength: of the term.
        before: what the router was trained with: its weights are kept where they are larger, because an expert that is
            not crowded out any more would be crowded out again.
    """
    weights, own = dict(before.weights), uses.get(task, 0)
    for name, count in uses.items():
        if count < own:
            weights[name] = max(weights.get(name, 0.0), round(1 - count / own, DIGITS))
    return Balance(strength, {name: weight for name, weight in weights.items() if weight > 0})


@torch.no_grad()
def accepted_share(router: RouterFile, features: torch.Tensor) -> float:
    """Share of features [samples, width] that a router accepts."""
    losses = from_tensors(router.tensors, decoder=router.decoder).losses(features)
    return (losses < router.threshold).float().mean().item()


def crowded_out(router: RouterFile, term: Balance, run: Run) -> tuple[Balance, dict[str, torch.Tensor]]:
    """The term without the tasks whose training features a router rejects, and the features of the others, by task.

    Raises:
        ArtifactError: features are missing or damaged.
    """
    found = {}
    for name in sorted(term.weights):
        rows = read_features(run.features(name))[1]
        rows = rows[:: math.ceil(len(rows) / MAX_ROWS)].clone()  # the others are freed
        if accepted_share(router, rows) >= CROWDED:
            found[name] = rows
    return term.only(found), found


def fit_balanced(
    autoencoder: Autoencoder,
    own: torch.Tensor,
    others: Mapping[str, torch.Tensor],
    term: Balance,
    chosen: RouterSettings,
    *,
    margin: float,
    seed: int,
) -> int:
    """Train a router that was trained on its own task further, with the usage-aware term; returns the number of epochs run.

    The recipe is that of `fit`, on the sum of both terms. A step has as many features of other tasks as own ones, drawn from
    the tasks in proportion to their weights.

    Args:
        autoencoder: of the router.
        own: features of its task [samples, width].
        others: task -> its features, for the tasks of `term`.
        term: the usage-aware term.
        chosen: epochs, patience and batch size.
        margin: reconstruction loss from which a feature of another task costs nothing.
        seed: of the order of the samples, and of the draws of other tasks' samples.
    """
    tasks = sorted(term.weights)
    features = torch.cat([others[name] for name in tasks])
    weights = torch.cat([torch.full((len(others[n]),), term.weights[n] / len(others[n])) for n in tasks])
    strength = term.strength * sum(term.weights.values()) / len(tasks)
    generator = torch.Generator().manual_seed(seed)

    def accepted(count: int) -> torch.Tensor:
        drawn = torch.multinomial(weights, count, replacement=True, generator=generator)
        return strength * (margin - autoencoder.losses(features[drawn])).clamp(min=0).mean()

    return minimise(autoencoder, own, chosen, generator=generator, further=accepted)
