"""The state of a training run as tensors: saved every few minutes, so that an interrupted run goes on with the same bytes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dmole_cli.artifacts.checkpoint import read_checkpoint, write_checkpoint
from dmole_cli.artifacts.provenance import Header
from dmole_cli.artifacts.training_log import StepFigures
from dmole_cli.processes import world
from dmole_cli.training.loop import Trainer

# Columns of the stored figures; the learning rate follows from the step.
_FIGURES = ("loss", "penalty", "gradient_norm", "tokens", "seconds", "answers", "truncated")
_MOMENTS = ("exp_avg", "exp_avg_sq")


class Checkpoints:
    """Saves the state of a training run, and restores it.

    It holds the expert, the optimizer's moments, position, random state and figures of the steps; nothing of the backbone.

    Args:
        path: the file.
        header: provenance of the expert, and what else must be equal for the same bytes.
        every: seconds between two checkpoints, 0 for one after every step.
    """

    def __init__(self, path: Path, header: Header, *, every: float) -> None:
        self.path, self.header, self.every = path, header, every
        self._saved_at = time.monotonic()
        self._found = read_checkpoint(path, header)
        # Every process must have read it before the first one writes the next.
        world().wait()

    @property
    def step(self) -> int:
        """Number of steps of the interrupted run that are in its checkpoint; 0 where there is none."""
        return 0 if self._found is None else int(self._found[1]["step"])

    def restore(self, trainer: Trainer) -> None:
        """Restore the state of the interrupted run, if there is one."""
        if self._found is not None:
            _restore(trainer, *self._found)
            self._found = None

    def save_in_time(self, trainer: Trainer) -> None:
        """Save the state if the last checkpoint is old enough."""
        if time.monotonic() - self._saved_at >= self.every:
            self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Save the state now. Every process has the same one; the first process writes it."""
        trainer.settle()
        if world().first:
            write_checkpoint(self.path, *_state(trainer, self.header))
        self._saved_at = time.monotonic()


def _state(trainer: Trainer, header: Header) -> tuple[dict[str, torch.Tensor], Header, dict[str, Any]]:
    flat, optimizer = trainer.flat, trainer.optimizer
    figures = torch.tensor([[getattr(row, name) for name in _FIGURES] for row in trainer.figures], dtype=torch.float32)
    tensors = {
        "value": flat.values(),
        # As bits, because the norm of a gradient that overflowed in float16 is infinite.
        "figures": figures.view(torch.int32),
        # A matrix that no gradient has reached yet has no state.
        "steps": flat.steps(optimizer),
        **{name: flat.moments(name, optimizer) for name in _MOMENTS},
    }
    if trainer.routed.dropout and not trainer.schedule.divided:
        tensors["random"] = torch.get_rng_state()
        if trainer.backbone.device.type == "cuda":
            tensors["random_cuda"] = torch.cuda.get_rng_state(trainer.backbone.device)
    return tensors, header, {"step": trainer.step, "scaler": trainer.scaler.state_dict()}


def _restore(trainer: Trainer, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
    moments = {name: tensors[name] for name in _MOMENTS}
    trainer.flat.restore(tensors["value"], moments, tensors["steps"], trainer.optimizer)
    if facts["scaler"]:
        trainer.scaler.load_state_dict(dict(facts["scaler"]))
    if "random" in tensors:
        torch.set_rng_state(tensors["random"])
    if "random_cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random_cuda"], trainer.backbone.device)
    trainer.figures[:] = [
        _figures(number, row, trainer.schedule.learning_rate_at(number))
        for number, row in enumerate(tensors["figures"].view(torch.float32).tolist())
    ]


def _figures(step: int, row: Sequence[float], rate: float) -> StepFigures:
    values = dict(zip(_FIGURES, row, strict=True))
    counts = {name: int(values.pop(name)) for name in ("tokens", "answers", "truncated")}
    return StepFigures(step=step + 1, learning_rate=rate, **values, **counts)  # type: ignore[arg-type]
