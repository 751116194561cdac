"""Stage `allocate --plan`: what a backbone and a budget come to, before any weight is loaded and without a profile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from dmole_cli.allocation.placement import MODALITIES, SiteScore, allocate, parse_budget
from dmole_cli.artifacts.allocation import read_allocation
from dmole_cli.backbones.backbone import Backbone, Encoded
from dmole_cli.backbones.checkpointing import activation_checkpointing
from dmole_cli.backbones.files import resolve
from dmole_cli.backbones.meta_model import meta_model
from dmole_cli.backbones.processors import load_processor
from dmole_cli.backbones.sites import Site, find_sites
from dmole_cli.errors import DmoleError
from dmole_cli.experts.routed import Expert, RoutedExperts
from dmole_cli.profiling.estimates import FRAGMENTATION, estimate_memory, library_bytes, longest_batch
from dmole_cli.profiling.memory import as_fake_tensors, fake_mode
from dmole_cli.profiling.sensitivity import measure_sensitivity
from dmole_cli.session import Session
from dmole_cli.training.loop import train_expert

BUDGETS = ("0.5%", "1%", "2%", "5%", "sites:25%", "sites:50%", "sites:100%")
BYTES = 4  # of an expert's number, which is float32 while it trains and on disk
ASSUMES = (
    "batches are the longest samples of the task's training split, padded to the longest of them",
    "experts lie where the task's allocation puts them; without one, on the first sites that the budget holds, which keeps the "
    "most; on all sites where the budget cannot be",
    "no earlier expert joins, no penalty is added; a worker process that prepares batches has its own memory",
    f"process = libraries as loaded here + weights + tensors + {FRAGMENTATION} x tensors without checkpointing, for heap "
    "fragmentation on a CPU; on a GPU: weights + tensors",
)


def plan(session: Session, tasks: Sequence[str]) -> dict[str, Any]:
    """State sites, parameters and bytes per budget, and the memory that profiling and training take.

    Args:
        session: backbone, settings.
        tasks: whose longest samples decide the memory.

    Raises:
        DmoleError: the backbone has no configuration or no processor, or a task's data cannot be read.
    """
    config = session.config
    model = meta_model(config.backbone, attention=config.attention)
    sites = find_sites(model, config.profile.sites)
    parameters = sum(p.numel() for p in model.parameters())
    rows = [_budget(session, text, sites, parameters) for text in dict.fromkeys((config.allocate.budget, *BUDGETS))]
    return {
        "model": type(model).__name__,
        "parameters": parameters,
        "pattern": config.profile.sites,
        "sites": {name: sum(site.modality == name for site in sites) for name in MODALITIES},
        "rank": config.allocate.rank,
        "budgets": rows,
        "memory": _memory(session, tasks, model, sites),
        "assumes": list(ASSUMES),
    }


def _budget(session: Session, text: str, sites: Sequence[Site], parameters: int) -> dict[str, Any]:
    """What a budget buys where all sites pull alike; what it cannot buy is said instead."""
    try:
        names, spent = _placed(session, text, sites, parameters)
    except DmoleError as error:
        return {"budget": text, "refused": error.message}
    return {"budget": text, "sites": len(names), "parameters": spent, "bytes": BYTES * spent}


def _placed(session: Session, budget: str, sites: Sequence[Site], parameters: int) -> tuple[tuple[str, ...], int]:
    """The sites that get an expert, and its parameters, where all sites pull alike."""
    settings = session.config.allocate
    placed = allocate(
        [SiteScore(s.name, s.modality, s.expert_parameters(settings.rank), 1.0) for s in sites],
        budget=parse_budget(budget),
        backbone_parameters=parameters,
        rank=settings.rank,
        vision_floor=settings.vision_floor,
        curriculum=settings.curriculum,
        modalities=settings.modalities,
    )
    return placed.chosen, placed.parameters


def _memory(session: Session, tasks: Sequence[str], model: Any, sites: Sequence[Site]) -> list[dict[str, Any]]:
    config = session.config
    if config.quantize != "none":
        raise DmoleError(
            f"no plan knows the memory of --quantize {config.quantize}",
            "plan without it: activations are the same, the weights' bytes about a fourth (4bit) or half (8bit) of float16's",
        )
    try:
        processor = load_processor(resolve(config.backbone))
    except Exception as error:  # whatever a library says of files that are no processor
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DmoleError(
            f"backbone '{config.backbone}' has no processor, which says how long samples are: {why}",
            "put its files beside config.json, or see the sites alone: dmole sites",
        ) from error
    libraries = library_bytes()
    fake = as_fake_tensors(model, getattr(torch, config.dtype))
    backbone = Backbone(config.backbone, "", fake, processor, precision=session.precision)
    found = []
    for task in tasks:
        samples = session.samples(task, "train")
        lengths = backbone.inputs.lengths(samples, with_answer=True)
        for work, size in _batch_sizes(session, task, len(samples)).items():
            batch = longest_batch(backbone, samples, lengths, size)
            doing = (
                partial(measure_sensitivity, backbone, sites, [batch, batch])
                if work == "profile"
                else partial(_train, session, task, backbone, sites, batch)
            )
            rows = estimate_memory(backbone, batch, doing, libraries=libraries)
            found += [{"task": task, "work": work, **asdict(row)} for row in rows]
    return found


def _batch_sizes(session: Session, task: str, samples: int) -> Mapping[str, int]:
    """Samples of a batch of each kind of work, as its stage has it."""
    profile, train = session.config.profile, session.config.train
    measured = max(1, round(samples * profile.portion))
    training = train.batch_size or session.card(task).recipe.batch_size
    return {"profile": min(profile.batch_size, measured), "train-task": min(training, samples)}


def _train(
    session: Session,
    task: str,
    backbone: Backbone,
    sites: Sequence[Site],
    batch: list[Encoded],
    *,
    checkpointing: bool,
) -> None:
    """Two steps of the training loop: the second one has the optimiser's state beside its activations."""
    settings, by_name = session.config.allocate, {site.name: site for site in sites}
    matrices = {}
    with fake_mode(backbone.model):
        for name in _hosts(session, task, backbone, sites):
            site = by_name[name]
            a, b = torch.empty(settings.rank, site.in_features), torch.empty(site.out_features, settings.rank)
            matrices[name] = a.requires_grad_(), b.requires_grad_()
    expert = Expert(matrices, settings.alpha / settings.rank, trainable=True)
    routed = RoutedExperts(backbone.model, backbone.modality_of, dropout=session.config.train.dropout)
    routed.add(task, expert)
    step = ([str(number) for number in range(len(batch))], [(task,)] * len(batch), batch)
    try:
        with activation_checkpointing(backbone) if checkpointing else nullcontext():
            train_expert(
                backbone, routed, expert, [step, step], steps=2, learning_rate=1e-3, settings=session.config.train
            )
    finally:
        routed.close()


def _hosts(session: Session, task: str, backbone: Backbone, sites: Sequence[Site]) -> Sequence[str]:
    path = session.run.allocation(task)
    if path.exists():
        document, made = read_allocation(path, hint="delete it and allocate again")
        if made.backbone == session.fingerprint and int(document["rank"]) == session.config.allocate.rank:
            return [name for name in document["sites"] if name in {site.name for site in sites}]
    try:
        return _placed(session, session.config.allocate.budget, sites, backbone.parameters)[0]
    except DmoleError:  # said beside the budget; the most that can train is a plan all the same
        return [site.name for site in sites if site.modality in session.config.allocate.modalities]
