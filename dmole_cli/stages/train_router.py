"""Stage `train-router`: a small autoencoder that recognises one task's inputs (D-MoLE, arXiv 2506.11672, section 4.1)."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from dmole_cli.artifacts.costs import measured
from dmole_cli.artifacts.errors import ArtifactError
from dmole_cli.artifacts.headers import header_of, is_current
from dmole_cli.artifacts.kinds import FEATURES, ROUTER
from dmole_cli.artifacts.outcome import Outcome
from dmole_cli.artifacts.provenance import Header, versions
from dmole_cli.artifacts.router import RouterFile, write_router
from dmole_cli.artifacts.run import Run
from dmole_cli.backbones.lazy_model import LazyModel
from dmole_cli.data.seeds import seed_for
from dmole_cli.data.tasks import Tasks
from dmole_cli.errors import DmoleError
from dmole_cli.processes import world
from dmole_cli.progress import Track, quiet
from dmole_cli.routing.autoencoder import Autoencoder, fit
from dmole_cli.routing.features import routing_features
from dmole_cli.settings.model import RouterSettings, Settings

QUANTILES = (0.10, 0.25, 0.50, 0.75, 0.90, 0.95, 0.99)
MINIMUM_SAMPLES = 10  # below this, held-out quantiles are meaningless


def train_router(
    task: str, *, settings: Settings, data: Tasks, model: LazyModel, run: Run, force: bool = False, track: Track = quiet
) -> Outcome:
    """Train one router; writes `features/<task>.parquet` (reused by later stages) and `routers/<task>.safetensors`.

    Raises:
        DmoleError: the task's data cannot be read, there are too few samples, the router is not finite, or the output is stale.
    """
    chosen = settings.router
    samples = data.samples(task, "train")
    if len(samples) < MINIMUM_SAMPLES:
        raise DmoleError(
            f"task {task} has {len(samples)} training rows; a router needs at least {MINIMUM_SAMPLES}",
            "add rows to the task's data",
        )
    header = Header.of(
        ROUTER,
        backbone=model.fingerprint,
        seed=chosen.seed,
        settings=chosen.for_header(),
        inputs=data.inputs((task, "train")),
        versions=versions("torch", "transformers"),
    )
    path = run.router(task)
    outcome = Outcome("train-router", task, path, reads=(f"task {task} (train)", f"backbone {model.name}"))
    # Training reads the features, too, so that a router without them is not complete.
    if world().from_first(lambda: is_current(path, ROUTER, header, force=force) and _readable(run.features(task))):
        return outcome
    backbone = model.load()
    with measured(run.cost("train-router", task), model.counts):
        features = routing_features(
            task, "train", data=data, backbone=backbone, run=run, track=track, workers=settings.workers
        )
        router, epochs = build_router(features, chosen, task=task, layout=backbone.feature_layout(), header=header)
    write_router(path, router)
    data.image_digests.save()
    world().wait()
    return outcome.wrote(threshold=round(router.threshold, 8), epochs=epochs, samples=len(samples))


def _readable(features: Path) -> bool:
    """Whether a file of features exists and is not damaged."""
    try:
        return header_of(features, FEATURES) is not None
    except ArtifactError:
        return False


def build_router(
    features: torch.Tensor, chosen: RouterSettings, *, task: str, layout: list[dict], header: Header
) -> tuple[RouterFile, int]:
    """Fit an autoencoder to features [samples, width], and its threshold to held-out ones; returns it and the epochs run."""
    seed = seed_for(chosen.seed, task, "router")
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))
    held_out = max(1, round(len(features) * chosen.held_out))
    fitted, tested = features[order[held_out:]], features[order[:held_out]]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        autoencoder = Autoencoder(features.shape[1], hidden=chosen.hidden, decoder=chosen.decoder)
    epochs = fit(autoencoder, fitted, chosen, seed=seed)
    with torch.no_grad():
        losses = autoencoder.losses(tested)
    threshold = torch.quantile(losses, chosen.quantile).item() * chosen.threshold_scale
    tensors = {name: value.detach() for name, value in autoencoder.state_dict().items()}
    if not math.isfinite(threshold) or not all(bool(value.isfinite().all()) for value in tensors.values()):
        raise DmoleError(
            f"the router of {task} is not finite (threshold {threshold}); nothing was written",
            "check the task's data with `dmole tasks check`, and threshold_scale of [router]",
        )
    return RouterFile(tensors, threshold, quantiles(losses), layout, chosen.decoder, header), epochs


def quantiles(losses: torch.Tensor) -> dict[str, float]:
    """Summary of losses [samples]: minimum, quantiles, maximum, mean, standard deviation."""
    table = {"min": losses.min().item()}
    table |= {f"{q:.2f}": torch.quantile(losses, q).item() for q in QUANTILES}
    return table | {"max": losses.max().item(), "mean": losses.mean().item(), "std": losses.std(correction=0).item()}
