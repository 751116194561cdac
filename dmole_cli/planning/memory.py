"""Peak memory of profiling and training, from the stages' own code on tensors without data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from dmole_cli.backbones.backbone import Backbone, Encoded
from dmole_cli.backbones.checkpointing import activation_checkpointing
from dmole_cli.backbones.sites import find_sites
from dmole_cli.experts.expert import Expert
from dmole_cli.experts.routed import RoutedExperts
from dmole_cli.planning.inputs import PlanInputs
from dmole_cli.profiling.estimates import estimate_memory, longest_batch
from dmole_cli.profiling.memory import fake_mode
from dmole_cli.profiling.sensitivity import measure_sensitivity
from dmole_cli.training.loop import Batch, Schedule, train_expert


def memory_rows(
    inputs: PlanInputs, tasks: Sequence[str], backbone: Backbone, *, libraries: int
) -> list[dict[str, Any]]:
    """Peak memory of both kinds of work, with and without checkpointing, as JSON values.

    Args:
        inputs: of the plan.
        tasks: tasks whose longest samples determine the memory.
        backbone: with a model of `as_fake_tensors`.
        libraries: result of `library_bytes`.
    """
    settings = inputs.settings
    measured, found = find_sites(backbone.model, settings.profile.sites), list[dict[str, Any]]()
    for task in tasks:
        samples = inputs.data.samples(task, "train")
        lengths = backbone.inputs.lengths(samples, with_answer=True)
        for work, size in _batch_sizes(inputs, task, len(samples)).items():
            batch = longest_batch(backbone, samples, lengths, size, max_length=settings.train.max_length)
            steps: Callable[..., object] = partial(measure_sensitivity, backbone, measured, [batch, batch])
            kept = 0
            if work == "train-task":
                steps = partial(_train, inputs, task, backbone, batch)
                kept = _kept_samples(inputs, task, batch, len(samples))
            rows = estimate_memory(backbone, batch, steps, libraries=libraries, samples=kept)
            found += [{"task": task, "work": work, **asdict(row)} for row in rows]
    return found


def _kept_samples(inputs: PlanInputs, task: str, batch: Sequence[Encoded], samples: int) -> int:
    """Bytes of the prepared samples that training keeps, where it visits them again."""
    epochs = inputs.settings.train.epochs or inputs.data.card(task).recipe.epochs
    each = sum(sample.nbytes for sample in batch) // len(batch)
    return min(inputs.settings.sample_cache * 2**20, samples * each) if epochs > 1 else 0


def _batch_sizes(inputs: PlanInputs, task: str, samples: int) -> Mapping[str, int]:
    """Samples per batch of profiling and training, as these stages use them."""
    profile, train = inputs.settings.profile, inputs.settings.train
    profiled = max(1, round(samples * profile.portion))
    training = train.batch_size or inputs.data.card(task).recipe.batch_size
    return {
        "profile": min(profile.batch_size, profiled),
        "train-task": min(inputs.micro_batch or training, training, samples),
    }


def _train(inputs: PlanInputs, task: str, backbone: Backbone, batch: list[Encoded], *, checkpointing: bool) -> None:
    """Two steps of the training loop: at the second one the optimizer's state exists beside the activations."""
    settings = inputs.settings
    expert = Expert(_matrices(inputs, task, backbone), settings.allocate.scale, trainable=True)
    routed = RoutedExperts(backbone.model, backbone.modality_of, dropout=settings.train.dropout)
    routed.add(task, expert)
    step = Batch([str(number) for number in range(len(batch))], [(task,)] * len(batch), batch)
    schedule = Schedule(2, 1e-3, settings.train)
    try:
        with activation_checkpointing(backbone) if checkpointing else nullcontext():
            train_expert(backbone, routed, expert, [step, step], schedule=schedule)
    finally:
        routed.close()


def _matrices(inputs: PlanInputs, task: str, backbone: Backbone) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    matrices = {}
    with fake_mode(backbone.model):
        for site, (rank, width, out) in inputs.shapes(task).items():
            a, b = torch.empty(rank, width), torch.empty(out, rank)
            matrices[site] = a.requires_grad_(), b.requires_grad_()
    return matrices
