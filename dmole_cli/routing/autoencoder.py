"""One small autoencoder per task, which reconstructs the features of its own task well and those of other tasks badly.

D-MoLE, arXiv 2506.11672, section 4.1: m_t(x) is the mean squared reconstruction error of task t's autoencoder on the
L2-normalised feature of x.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from dmole_cli.settings.model import RouterSettings


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


class Routers:
    """Several autoencoders of equal width, whose losses are computed together: of many routers, each is a small product.

    Args:
        routers: frozen; those with the same bottleneck and decoder are stacked.
    """

    def __init__(self, routers: Sequence[Autoencoder]) -> None:
        self._count = len(routers)
        groups: dict[tuple[int, type], list[int]] = {}
        for index, router in enumerate(routers):
            groups.setdefault((_linear(router.encoder).out_features, type(router.decoder[1])), []).append(index)
        self._stacks = [(indices, _Stack([routers[index] for index in indices])) for indices in groups.values()]

    @torch.no_grad()
    def losses(self, features: torch.Tensor) -> torch.Tensor:
        """Mean squared error of each sample under each router [samples, routers]; features are [samples, width]."""
        found = torch.empty(len(features), self._count)
        for indices, stack in self._stacks:
            found[:, indices] = stack.losses(features)
        return found


class _Stack:
    """The matrices of autoencoders of one shape: encoders as one [routers * hidden, width], decoders [routers, hidden, width]."""

    def __init__(self, routers: Sequence[Autoencoder]) -> None:
        encoders, decoders = [_linear(r.encoder) for r in routers], [_linear(r.decoder) for r in routers]
        self.encoder = (
            torch.cat([linear.weight for linear in encoders]),
            torch.cat([linear.bias for linear in encoders]),
        )
        self.decoder = torch.stack([linear.weight.t() for linear in decoders])
        self.bias = torch.stack([linear.bias for linear in decoders])[:, None]
        self.ends = routers[0].decoder[1]

    def losses(self, features: torch.Tensor) -> torch.Tensor:
        hidden = F.relu(F.linear(features, *self.encoder)).view(len(features), len(self.decoder), -1)
        found = self.ends(torch.baddbmm(self.bias, hidden.transpose(0, 1), self.decoder))
        return (found - features).square().mean(dim=-1).t()


def _linear(layers: nn.Sequential) -> nn.Linear:
    """The linear layer of an encoder or decoder."""
    linear = layers[0]
    assert isinstance(linear, nn.Linear)
    return linear


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


def fit(autoencoder: Autoencoder, features: torch.Tensor, chosen: RouterSettings, *, seed: int) -> int:
    """Train on features [samples, width]; returns the number of epochs run.

    MSE, Adam, learning rate 5e-3 on a cosine to 1e-3, stopped after `patience` epochs without a lower training loss
    (the recipe of the reference implementation). `start = "random"` leaves the decoder's bias as PyTorch initializes
    it, as the reference does.
    """
    if chosen.start == "mean":
        start_at_mean(autoencoder, features)
    return minimise(autoencoder, features, chosen, generator=torch.Generator().manual_seed(seed))


def minimise(
    autoencoder: Autoencoder,
    features: torch.Tensor,
    chosen: RouterSettings,
    *,
    generator: torch.Generator,
    further: Callable[[int], torch.Tensor] | None = None,
) -> int:
    """The optimisation of `fit`, from the parameters as they are; returns the number of epochs run.

    Args:
        autoencoder: it is trained.
        features: of its task [samples, width].
        chosen: epochs, patience and batch size.
        generator: of the order of the samples.
        further: a term that is added to the loss of a step, by the number of samples of the step.
    """
    optimizer = torch.optim.Adam(autoencoder.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, chosen.epochs, eta_min=1e-3)
    best, waited = float("inf"), 0
    for epoch in range(1, chosen.epochs + 1):
        total = 0.0
        for rows in torch.randperm(len(features), generator=generator).split(chosen.batch_size):
            loss = autoencoder.losses(features[rows]).mean()
            if further is not None:
                loss = loss + further(len(rows))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows)
        schedule.step()
        waited = 0 if total < best else waited + 1
        best = min(best, total)
        if waited >= chosen.patience:
            return epoch
    return chosen.epochs
