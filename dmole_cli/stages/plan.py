"""Stage `plan`: sites and parameters per budget, and peak memory; needs neither weights nor a profile."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from dmole_cli.allocation.placement import MODALITIES, Placement, SiteScore, allocate
from dmole_cli.artifacts.allocation import read_allocation
from dmole_cli.artifacts.run import Run
from dmole_cli.backbones.backbone import Backbone, Encoded
from dmole_cli.backbones.checkpointing import activation_checkpointing
from dmole_cli.backbones.files import resolve
from dmole_cli.backbones.lazy_model import LazyModel
from dmole_cli.backbones.meta_model import meta_model
from dmole_cli.backbones.processors import load_processor
from dmole_cli.backbones.reach import find_candidates
from dmole_cli.backbones.sites import Site, find_sites
from dmole_cli.data.tasks import Tasks
from dmole_cli.errors import DmoleError, first_line
from dmole_cli.experts.expert import Expert
from dmole_cli.experts.routed import RoutedExperts
from dmole_cli.profiling.estimates import FRAGMENTATION, estimate_memory, library_bytes, longest_batch
from dmole_cli.profiling.memory import as_fake_tensors, fake_mode
from dmole_cli.profiling.sensitivity import measure_sensitivity
from dmole_cli.settings.budget import parse_budget
from dmole_cli.settings.model import Settings
from dmole_cli.training.loop import Batch, Schedule, train_expert

BUDGETS = ("0.5%", "1%", "2%", "5%", "sites:25%", "sites:50%", "sites:100%")
BYTES_PER_PARAMETER = 4  # experts are float32, in training and on disk
ASSUMPTIONS = (
    "batches are the longest samples of the task's training split, at most --max-length, padded to the longest of them",
    "experts sit at the sites of the task's allocation; without one, at the first sites that the budget holds, which keeps "
    "the most activations; at all sites where the budget holds no expert",
    "no transfer expert and no penalty; a worker process that prepares batches has its own memory",
    f"process = libraries as loaded here + weights + tensors + {FRAGMENTATION} x tensors without checkpointing, for heap "
    "fragmentation on a CPU; on a GPU: weights + tensors",
)


@dataclass(frozen=True)
class _Inputs:
    """What a plan depends on."""

    settings: Settings
    data: Tasks
    model: LazyModel
    run: Run
    sites: Sequence[Site]
    parameters: int


def plan(tasks: Sequence[str], *, settings: Settings, data: Tasks, model: LazyModel, run: Run) -> dict[str, Any]:
    """State sites, parameters and bytes per budget, and the peak memory of profiling and training.

    Args:
        tasks: tasks whose longest samples determine the memory.
        settings: budget, batch sizes, data type and precision.
        data: the tasks.
        model: the backbone; its weights are not loaded.
        run: the run directory, for allocations that exist.

    Raises:
        DmoleError: the backbone has no configuration or no processor, or a task's data cannot be read.
    """
    empty = meta_model(model.name, attention=settings.attention)
    sites = find_candidates(empty, settings.profile.sites)
    inputs = _Inputs(settings, data, model, run, sites, sum(p.numel() for p in empty.parameters()))
    budgets = dict.fromkeys((settings.allocate.budget, *BUDGETS))
    return {
        "model": type(empty).__name__,
        "parameters": inputs.parameters,
        "pattern": settings.profile.sites,
        "sites": {name: sum(site.modality == name for site in sites) for name in MODALITIES},
        "rank": settings.allocate.rank,
        "budgets": [_budget(inputs, text) for text in budgets],
        "memory": _memory(inputs, tasks, empty),
        "assumes": list(ASSUMPTIONS),
    }


def _budget(inputs: _Inputs, text: str) -> dict[str, Any]:
    """Sites, parameters and bytes of a budget where all sites have the same sensitivity, or why it is refused.

    `unused` is what experts on all sites leave of a larger budget, in its unit.
    """
    try:
        placed = _placed(inputs, text)
    except DmoleError as error:
        return {"budget": text, "refused": error.message}
    found = {"sites": placed.sites, "parameters": placed.parameters, "bytes": BYTES_PER_PARAMETER * placed.parameters}
    rest = {"unused": placed.budget - placed.spent} if placed.budget > placed.capacity else {}
    return {"budget": text, **found, **rest}


def _placed(inputs: _Inputs, budget: str) -> Placement:
    """The placement where all sites have the same sensitivity."""
    chosen = inputs.settings.allocate
    return allocate(
        [SiteScore(s.name, s.modality, s.expert_parameters(chosen.rank), 1.0) for s in inputs.sites],
        budget=parse_budget(budget),
        backbone_parameters=inputs.parameters,
        rank=chosen.rank,
        vision_floor=chosen.vision_floor,
        curriculum=chosen.curriculum,
        modalities=chosen.modalities,
    )


def _memory(inputs: _Inputs, tasks: Sequence[str], empty: Any) -> list[dict[str, Any]]:
    settings, model = inputs.settings, inputs.model
    if settings.quantize != "none":
        raise DmoleError(
            f"memory planning does not support --quantize {settings.quantize}",
            "plan without it: activations are the same, weights take about a fourth (4bit) or half (8bit) of float16's bytes",
        )
    try:
        processor = load_processor(resolve(model.name))
    except Exception as error:  # libraries raise many types for files that are not a processor
        raise DmoleError(
            f"backbone '{model.name}' has no processor, which determines the length of samples: {first_line(error)}",
            "put its files beside config.json, or list the sites alone: dmole sites",
        ) from error
    libraries = library_bytes()
    fake = as_fake_tensors(empty, getattr(torch, settings.dtype))
    backbone = Backbone(model.name, "", fake, processor, precision=model.precision)
    measured = find_sites(fake, settings.profile.sites)
    found = []
    for task in tasks:
        samples = inputs.data.samples(task, "train")
        lengths = backbone.inputs.lengths(samples, with_answer=True)
        for work, size in _batch_sizes(inputs, task, len(samples)).items():
            batch = longest_batch(backbone, samples, lengths, size, max_length=settings.train.max_length)
            steps: Callable[..., object] = partial(measure_sensitivity, backbone, measured, [batch, batch])
            if work == "train-task":
                steps = partial(_train, inputs, task, backbone, batch)
            rows = estimate_memory(backbone, batch, steps, libraries=libraries)
            found += [{"task": task, "work": work, **asdict(row)} for row in rows]
    return found


def _batch_sizes(inputs: _Inputs, task: str, samples: int) -> Mapping[str, int]:
    """Samples per batch of profiling and training, as these stages use them."""
    profile, train = inputs.settings.profile, inputs.settings.train
    profiled = max(1, round(samples * profile.portion))
    training = train.batch_size or inputs.data.card(task).recipe.batch_size
    return {"profile": min(profile.batch_size, profiled), "train-task": min(training, samples)}


def _train(inputs: _Inputs, task: str, backbone: Backbone, batch: list[Encoded], *, checkpointing: bool) -> None:
    """Two steps of the training loop: at the second one the optimizer's state exists beside the activations."""
    settings, chosen = inputs.settings, inputs.settings.allocate
    expert = Expert(_matrices(inputs, task, backbone), chosen.alpha / chosen.rank, trainable=True)
    routed = RoutedExperts(backbone.model, backbone.modality_of, dropout=settings.train.dropout)
    routed.add(task, expert)
    step = Batch([str(number) for number in range(len(batch))], [(task,)] * len(batch), batch)
    schedule = Schedule(2, 1e-3, settings.train)
    try:
        with activation_checkpointing(backbone) if checkpointing else nullcontext():
            train_expert(backbone, routed, expert, [step, step], schedule=schedule)
    finally:
        routed.close()


def _matrices(inputs: _Inputs, task: str, backbone: Backbone) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    rank, by_name, matrices = inputs.settings.allocate.rank, {site.name: site for site in inputs.sites}, {}
    with fake_mode(backbone.model):
        for name in _hosts(inputs, task):
            site = by_name[name]
            a, b = torch.empty(rank, site.in_features), torch.empty(site.out_features, rank)
            matrices[name] = a.requires_grad_(), b.requires_grad_()
    return matrices


def _hosts(inputs: _Inputs, task: str) -> Sequence[str]:
    """The sites of a task's expert: those of its allocation, else of the budget, else all of the chosen modalities."""
    chosen = inputs.settings.allocate
    path = inputs.run.allocation(task)
    if path.exists():
        document, made = read_allocation(path)
        if made.backbone == inputs.model.fingerprint and int(document["rank"]) == chosen.rank:
            return [name for name in document["sites"] if name in {site.name for site in inputs.sites}]
    try:
        return _placed(inputs, chosen.budget).chosen
    except DmoleError:  # reported beside the budget; the plan is made for the largest expert
        return [site.name for site in inputs.sites if site.modality in chosen.modalities]
