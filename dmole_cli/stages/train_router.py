"""Stage `train-router`: a small autoencoder that recognises one task's inputs (D-MoLE, arXiv 2506.11672, section 4.1)."""

from __future__ import annotations

from dataclasses import asdict, replace

import torch

from dmole_cli.artifacts.outcome import Outcome
from dmole_cli.artifacts.provenance import Header, up_to_date, versions
from dmole_cli.artifacts.router import SCHEMA, VERSION, RouterFile, router_header, write_router
from dmole_cli.data.seeds import seed_for
from dmole_cli.errors import DmoleError
from dmole_cli.progress import Track, untracked
from dmole_cli.routing.autoencoder import Autoencoder, fit
from dmole_cli.routing.features import routing_features
from dmole_cli.session import Session

QUANTILES = (0.10, 0.25, 0.50, 0.75, 0.90, 0.95, 0.99)
FEWEST = 10  # samples below which held-out quantiles mean nothing


def train_router(session: Session, task: str, *, force: bool = False, track: Track = untracked) -> Outcome:
    """Train one router; writes `features/<task>.parquet` (kept for later stages) and `routers/<task>.safetensors`.

    Raises:
        DmoleError: the task's data cannot be read, there are too few samples, or the output is stale.
    """
    config, settings = session.config, session.config.router
    samples = session.samples(task, "train")
    if len(samples) < FEWEST:
        raise DmoleError(
            f"task {task} has {len(samples)} training rows; a router needs at least {FEWEST}",
            "add rows to the task's data",
        )
    header = Header(
        SCHEMA,
        VERSION,
        backbone=session.fingerprint,
        seed=settings.seed,
        settings=asdict(settings),
        inputs={f"data:{task}/train": session.data_digest(task, "train")},
        versions=versions("torch", "transformers"),
    )
    path, reads = session.run.router(task), (f"task {task} (train)", f"backbone {config.backbone}")
    redo = session.command("train-router", task, **({"seed": settings.seed} if settings.seed else {}))
    done = up_to_date(path, None if force else router_header(path), header, force=force, command=redo)
    if done and session.run.features(task).exists():  # training reads them, and sends people here who have deleted them
        return Outcome("train-router", task, path, written=False, reads=reads)
    session.load()
    with session.measured("train-router", task):
        features = routing_features(session, task, "train", track=track)
        router, epochs = build(session, features, header, task)
        write_router(path, router)
    facts = {"threshold": round(router.threshold, 8), "epochs": epochs, "samples": len(samples)}
    return Outcome("train-router", task, path, written=True, reads=reads, facts=facts)


def build(session: Session, features: torch.Tensor, header: Header, task: str) -> tuple[RouterFile, int]:
    """Fit an autoencoder on features [samples, width], its threshold on those held out."""
    settings = session.config.router
    seed = seed_for(settings.seed, task, "router")
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))
    held_out = max(1, round(len(features) * settings.held_out))
    kept, tested = features[order[held_out:]], features[order[:held_out]]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        autoencoder = Autoencoder(features.shape[1], hidden=settings.hidden, decoder=settings.decoder)
    epochs = fit(
        autoencoder,
        kept,
        seed=seed,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        patience=settings.patience,
        start=settings.start,
    )
    with torch.no_grad():
        losses = autoencoder.losses(tested)
    table = quantiles(losses)
    threshold = torch.quantile(losses, settings.quantile).item() * settings.threshold_scale
    tensors = {name: value.detach() for name, value in autoencoder.state_dict().items()}
    layout = session.backbone.feature_layout()
    return RouterFile(tensors, threshold, table, layout, settings.decoder, replace(header)), epochs


def quantiles(losses: torch.Tensor) -> dict[str, float]:
    """Summary of losses [samples]: min, the quantiles, max, mean, std."""
    table = {"min": losses.min().item()}
    table |= {f"{q:.2f}": torch.quantile(losses, q).item() for q in QUANTILES}
    return table | {"max": losses.max().item(), "mean": losses.mean().item(), "std": losses.std(correction=0).item()}
