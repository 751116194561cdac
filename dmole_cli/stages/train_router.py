"""Stage `train-router`: a small autoencoder that recognises one task's inputs (D-MoLE, arXiv 2506.11672, section 4.1)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dmole_cli.artifacts.costs import measured
from dmole_cli.artifacts.errors import ArtifactError
from dmole_cli.artifacts.files import digest_of_file
from dmole_cli.artifacts.headers import header_of, is_current
from dmole_cli.artifacts.kinds import EXPERT, FEATURES, ROUTER
from dmole_cli.artifacts.outcome import Outcome
from dmole_cli.artifacts.provenance import Header, versions
from dmole_cli.artifacts.router import RouterFile, write_router
from dmole_cli.artifacts.run import Run
from dmole_cli.artifacts.staleness import check_inputs
from dmole_cli.backbones.lazy_model import LazyModel
from dmole_cli.data.seeds import seed_for
from dmole_cli.data.tasks import Tasks
from dmole_cli.errors import DmoleError
from dmole_cli.processes import world
from dmole_cli.progress import Track, quiet
from dmole_cli.routing.autoencoder import Autoencoder, fit, from_tensors
from dmole_cli.routing.balance import DIGITS, Balance, accepted_share, crowded_out, fit_balanced, recorded_balance
from dmole_cli.routing.features import routing_features
from dmole_cli.settings.model import RouterSettings, Settings

QUANTILES = (0.10, 0.25, 0.50, 0.75, 0.90, 0.95, 0.99)
MINIMUM_SAMPLES = 10  # below this, held-out quantiles are meaningless
OWN_LOSS = 0.05  # decrease of the accepted share of the own task that is worth a warning
NONE_CROWDED_OUT = "it is left as it is: it takes inputs of no {}task whose expert is used less"


def train_router(
    task: str,
    *,
    settings: Settings,
    data: Tasks,
    model: LazyModel,
    run: Run,
    balance: Balance | None = None,
    force: bool = False,
    track: Track = quiet,
) -> Outcome:
    """Train one router; writes `features/<task>.parquet` (reused by later stages) and `routers/<task>.safetensors`.

    Args:
        balance: the usage-aware term, of which only the tasks count that the router crowds out. Where the router that exists is
            current but for its term, it is trained again without `force`. None for the term of the router that exists.

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
    plain = Header.of(
        ROUTER,
        backbone=model.fingerprint,
        seed=chosen.seed,
        settings=chosen.for_header(),
        inputs=data.inputs((task, "train")),
        versions=versions("torch", "transformers"),
    )
    path = run.router(task)
    made = world().from_first(lambda: _made(path, force=force))
    kept = recorded_balance(made)
    header = world().from_first(lambda: _with_term(plain, kept, run=run, made=made, data=data))
    outcome = Outcome("train-router", task, path, reads=(f"task {task} (train)", f"backbone {model.name}"))
    # Training reads the features, too, so that a router without them is not complete.
    current = world().from_first(
        lambda: is_current(path, ROUTER, header, force=force) and _readable(run.features(task))
    )
    if current and (balance is None or balance == kept or not (balance or kept)):
        return outcome
    backbone = model.load()
    with measured(run.cost("train-router", task), model.counts):
        features = routing_features(
            task, "train", data=data, backbone=backbone, run=run, track=track, workers=settings.workers
        )
        router, epochs = build_router(features, chosen, task=task, layout=backbone.feature_layout(), header=plain)
        term, others = crowded_out(router, kept if balance is None else balance, run)
        if current and term == kept:
            return replace(outcome, warnings=(NONE_CROWDED_OUT.format("further " if kept else ""),))
        facts: dict[str, Any] = {"epochs": epochs}
        if term:
            header = world().from_first(lambda: _with_term(plain, term, run=run, made=None, data=data))
            router, facts = build_balanced_router(router, features, others, term, chosen, task=task, header=header)
    write_router(path, router)
    data.image_digests.save()
    world().wait()
    facts = {"threshold": round(router.threshold, 8), **facts, "samples": len(samples)}
    warned = _consequences(run, task, facts) if balance is not None else ()
    return replace(outcome, warnings=warned).wrote(**facts)


def _made(path: Path, *, force: bool) -> Header | None:
    """The header of the router that exists; with `force`, a damaged one is as good as none."""
    try:
        return header_of(path, ROUTER)
    except ArtifactError:
        if force:
            return None
        raise


def _with_term(plain: Header, term: Balance, *, run: Run, made: Header | None, data: Tasks) -> Header:
    """The header of a router with a usage-aware term, whose inputs are the features of the tasks that it rejects, too.

    Args:
        plain: the header without a term.
        term: the term.
        run: the run directory.
        made: of the router that exists. Where features that it was made from were deleted, it is still valid.
        data: the tasks.

    Raises:
        ArtifactError: features are missing, stale or another backbone's.
    """
    paths = [run.features(name) for name in sorted(term.weights)]
    deleted = [run.name_of(path) for path in paths if made is not None and not path.exists()]
    sources = {name: made.inputs[name] for name in deleted if made is not None and name in made.inputs}
    there = [path for path in paths if run.name_of(path) not in sources]
    sources |= check_inputs(run, there, fingerprint=plain.backbone, data=data.current_digest)
    return replace(plain, settings={**plain.settings, **term.for_header()}, inputs={**plain.inputs, **sources})


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
    fitted, tested = divided(features, chosen, task)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        autoencoder = Autoencoder(features.shape[1], hidden=chosen.hidden, decoder=chosen.decoder)
    epochs = fit(autoencoder, fitted, chosen, seed=seed)
    return _router(autoencoder, tested, chosen, task=task, layout=layout, header=header), epochs


def build_balanced_router(
    plain: RouterFile,
    features: torch.Tensor,
    others: Mapping[str, torch.Tensor],
    term: Balance,
    chosen: RouterSettings,
    *,
    task: str,
    header: Header,
) -> tuple[RouterFile, dict[str, Any]]:
    """Train a router further with the usage-aware term; its threshold is at most the former one.

    Args:
        plain: the router that was trained on its own task alone.
        features: of its task [samples, width].
        others: task -> features, for the tasks of the term.
        term: the term.
        chosen: the settings.
        task: of the router.
        header: with the term.

    Returns:
        The router, and the facts to report: `epochs`, those with the term, and `accepted`, by task the shares of accepted
        samples without and with the term: of the router's own task on held-out samples, of the others on training samples.
    """
    seed = seed_for(chosen.seed, task, "router")
    fitted, tested = divided(features, chosen, task)
    autoencoder = from_tensors({name: tensor.clone() for name, tensor in plain.tensors.items()}, decoder=plain.decoder)
    autoencoder.train().requires_grad_()
    epochs = fit_balanced(autoencoder, fitted, others, term, chosen, margin=plain.threshold, seed=seed)
    router = _router(autoencoder, tested, chosen, task=task, layout=plain.layout, header=header, margin=plain.threshold)
    counted = {task: tested, **{name: others[name] for name in sorted(term.weights)}}
    accepted = {
        name: [round(accepted_share(either, rows), DIGITS) for either in (plain, router)]
        for name, rows in counted.items()
    }
    return router, {"epochs": epochs, "accepted": accepted}


def divided(features: torch.Tensor, chosen: RouterSettings, task: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of a task that train its autoencoder, and held-out ones for the threshold."""
    seed = seed_for(chosen.seed, task, "router")
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))
    held_out = max(1, round(len(features) * chosen.held_out))
    return features[order[held_out:]], features[order[:held_out]]


def _router(
    autoencoder: Autoencoder,
    tested: torch.Tensor,
    chosen: RouterSettings,
    *,
    task: str,
    layout: list[dict],
    header: Header,
    margin: float | None = None,
) -> RouterFile:
    """A router with its threshold, from held-out features; `margin` limits it."""
    with torch.no_grad():
        losses = autoencoder.losses(tested)
    threshold = torch.quantile(losses, chosen.quantile).item() * chosen.threshold_scale
    threshold = threshold if margin is None else min(threshold, margin)
    tensors = {name: value.detach() for name, value in autoencoder.state_dict().items()}
    if not math.isfinite(threshold) or not all(bool(value.isfinite().all()) for value in tensors.values()):
        raise DmoleError(
            f"the router of {task} is not finite (threshold {threshold}); nothing was written",
            "check the task's data with `dmole tasks check`, and threshold_scale of [router]",
        )
    return RouterFile(tensors, threshold, quantiles(losses), layout, chosen.decoder, header, margin)


def _consequences(run: Run, task: str, facts: Mapping[str, Any]) -> tuple[str, ...]:
    """What the user should know after a router was trained with another term: a sentence each."""
    found = []
    accepted = facts.get("accepted", {})
    if accepted and accepted[task][1] < accepted[task][0] - OWN_LOSS:
        others = ", ".join(name for name in accepted if name != task)
        found.append(
            f"it accepts {accepted[task][1]:.1%} of the held-out samples of its own task, {accepted[task][0]:.1%} before: their "
            f"inputs overlap with those of {others}; a lower --balance keeps more of them"
        )
    if outdated := sorted(_trained_with(run, run.router(task))):
        found.append(
            f"the experts of {', '.join(outdated)} were trained with the earlier router and are stale; `dmole status` names the "
            "commands that train them again"
        )
    return tuple(found)


def _trained_with(run: Run, router: Path) -> set[str]:
    """Tasks with experts that were made from another version of a router."""
    name, digest, found = run.name_of(router), digest_of_file(router), set()
    for path in (run.root / EXPERT.folder).rglob("*.safetensors"):
        if (identified := run.identify(path)) is None:
            continue
        with suppress(ArtifactError):  # which the commands that read the expert report
            header = header_of(path, identified[0])
            if header is not None and header.inputs.get(name, digest) != digest:
                found.add(identified[1]["task"])
    return found


def quantiles(losses: torch.Tensor) -> dict[str, float]:
    """Summary of losses [samples]: minimum, quantiles, maximum, mean, standard deviation."""
    table = {"min": losses.min().item()}
    table |= {f"{q:.2f}": torch.quantile(losses, q).item() for q in QUANTILES}
    return table | {"max": losses.max().item(), "mean": losses.mean().item(), "std": losses.std(correction=0).item()}
