"""One small autoencoder per task: it reconstructs its own task's features well and others badly.

Routing (D-MoLE, arXiv 2506.11672, sections 4.1 and 4.3): m_t(x) is the mean squared reconstruction error of task t's
autoencoder on the L2-normalised feature of x; t is a candidate where m_t(x) is below its threshold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

SECOND_VOTE_SHARE = 0.3  # of a batch's votes, from which the reference lets a second task join


class Autoencoder(nn.Module):
    """Linear(width -> hidden), ReLU, Linear(hidden -> width), Sigmoid or nothing.

    A sigmoid cannot reach the negative entries of a feature; `decoder="linear"` can.
    """

    def __init__(self, width: int, *, hidden: int = 128, decoder: str = "sigmoid") -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(width, hidden), nn.ReLU())
        self.decoder = nn.Sequential(nn.Linear(hidden, width), nn.Sigmoid() if decoder == "sigmoid" else nn.Identity())

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Reconstruct features [samples, width]."""
        return self.decoder(self.encoder(features))

    def losses(self, features: torch.Tensor) -> torch.Tensor:
        """Mean squared error per sample, [samples]."""
        return (self(features) - features).square().mean(dim=-1)


def from_tensors(tensors: dict[str, torch.Tensor], *, decoder: str) -> Autoencoder:
    """Rebuild an autoencoder from its saved tensors."""
    hidden, width = tensors["encoder.0.weight"].shape
    autoencoder = Autoencoder(width, hidden=hidden, decoder=decoder)
    autoencoder.load_state_dict(tensors)
    return autoencoder.eval().requires_grad_(False)


def normalise(features: torch.Tensor) -> torch.Tensor:
    """L2-normalise each row."""
    return F.normalize(features, dim=-1)


@torch.no_grad()
def start_at_mean(autoencoder: Autoencoder, features: torch.Tensor) -> None:
    """Set the decoder's bias so that the untrained autoencoder reconstructs the mean of features [samples, width].

    Entries of an L2-normalised feature are of the order of width^-1/2. A sigmoid that starts at 0.5 is driven so far down by
    the first steps that its gradient nearly vanishes; docs/method.md has the comparison, made by `pipelines/routers.py`.
    """
    mean = features.mean(dim=0)
    linear = autoencoder.decoder[0]
    assert isinstance(linear, nn.Linear)
    saturating = isinstance(autoencoder.decoder[1], nn.Sigmoid)
    linear.bias.copy_(torch.logit(mean.clamp(1e-3, 1 - 1e-3)) if saturating else mean)
    linear.weight.mul_(0.1)


def fit(
    autoencoder: Autoencoder,
    features: torch.Tensor,
    *,
    seed: int,
    epochs: int,
    batch_size: int,
    patience: int,
    start: str = "mean",
) -> int:
    """Train on features [samples, width]; gives the number of epochs run.

    MSE, Adam, learning rate 5e-3 on a cosine to 1e-3, stopped after `patience` epochs without a better training loss
    (the reference's recipe). `start="random"` leaves the decoder's bias as PyTorch draws it, as the reference does.
    """
    if start == "mean":
        start_at_mean(autoencoder, features)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(autoencoder.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs, eta_min=1e-3)
    best, waited = float("inf"), 0
    for epoch in range(1, epochs + 1):
        total = 0.0
        for rows in torch.randperm(len(features), generator=generator).split(batch_size):
            loss = autoencoder.losses(features[rows]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows)
        schedule.step()
        waited = 0 if total < best else waited + 1
        best = min(best, total)
        if waited >= patience:
            return epoch
    return epochs


def top_candidates(losses: Sequence[float], thresholds: Sequence[float], *, most: int) -> list[int]:
    """Routers whose loss is below their threshold, nearest first, at most `most` of them; may be empty."""
    candidates = [t for t, (m, tau) in enumerate(zip(losses, thresholds, strict=True)) if m < tau]
    return sorted(candidates, key=lambda t: losses[t])[:most]


def batch_vote(losses: Sequence[Sequence[float]], thresholds: Sequence[float]) -> list[int]:
    """Route a whole batch as the reference does: each sample votes for its nearest candidate.

    The task with the most votes wins; the runner-up joins with at least 30 % of the votes; samples without a candidate do
    not vote. Ties go to the task that was voted for first.
    """
    votes = [first[0] for row in losses if (first := top_candidates(row, thresholds, most=1))]
    ranked = Counter(votes).most_common(2)
    return [t for i, (t, n) in enumerate(ranked) if i == 0 or n >= SECOND_VOTE_SHARE * len(votes)]
