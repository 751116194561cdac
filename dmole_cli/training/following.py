"""What accompanies the training of a task: progress, checkpoints, and the trackers that a user chose."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from dmole_cli.artifacts.training_log import StepFigures
from dmole_cli.errors import DmoleError, first_line
from dmole_cli.processes import world
from dmole_cli.progress import Track
from dmole_cli.training.checkpoints import Checkpoints
from dmole_cli.training.loop import Observer, Trainer

SHOWN = 10  # steps whose mean loss and rate are shown
LOGGED = ("loss", "penalty", "learning_rate", "gradient_norm", "tokens", "seconds")


class Followed(Observer):
    """Shows progress, saves checkpoints, and logs the figures of every step.

    Args:
        checkpoints: of the run.
        track: shows progress.
        label: description of the run.
        log: takes the figures of a step; None for no tracker.
        last: also save a checkpoint after the last step, because more work follows it than writing the expert.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        track: Track,
        label: str,
        *,
        log: Callable[[StepFigures], None] | None = None,
        last: bool = False,
    ) -> None:
        self.checkpoints, self.track, self.label, self.log, self.last = checkpoints, track, label, log, last

    def begin(self, trainer: Trainer) -> None:
        """Restore the state of an interrupted run."""
        self.checkpoints.restore(trainer)

    def steps(self, trainer: Trainer) -> Iterable[int]:
        """The steps that are left, with progress."""
        done, total = trainer.step, trainer.schedule.steps
        label = f"{self.label}, from step {done + 1}" if done else self.label
        return self.track(range(done, total), label, total, done=done, status=lambda: _status(trainer))

    def after_step(self, trainer: Trainer, figures: StepFigures) -> None:
        """Save a checkpoint if it is time, and log the step."""
        if trainer.step < trainer.schedule.steps:
            self.checkpoints.save_in_time(trainer)
        elif self.last:
            self.checkpoints.save(trainer)
        if self.log is not None and world().first:
            self.log(figures)


def _status(trainer: Trainer) -> str:
    """Loss, learning rate, tokens per second and memory, in a few words."""
    last = trainer.figures[-SHOWN:]
    if not last:
        return _memory(trainer.backbone.device)
    loss = sum(row.loss for row in last) / len(last)
    rate = sum(row.tokens for row in last) / max(sum(row.seconds for row in last), 1e-9)
    return f"loss {loss:.3f}, lr {last[-1].learning_rate:.1e}, {rate:.0f} tokens/s, {_memory(trainer.backbone.device)}"


def _memory(device: torch.device) -> str:
    """Peak memory: of the device, or of this process where it computes on the CPU."""
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB"
    try:
        import resource
    except ImportError:  # Windows
        return ""
    # On Linux in KiB.
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB"


def open_tracker(
    name: str, folder: Path, *, label: str, settings: Mapping[str, Any]
) -> tuple[Callable[[StepFigures], None] | None, Callable[[], None]]:
    """Start one of accelerate's trackers; returns a function that logs a step, and one that ends the tracker.

    Args:
        name: `tensorboard`, `trackio`, `wandb`, or `none`.
        folder: for the tracker's files, if it writes any.
        label: name of the run.
        settings: of the run, which the tracker shows.

    Raises:
        DmoleError: its package is not installed, or it cannot start.
    """
    if name == "none" or not world().first:
        return None, lambda: None
    from importlib.util import find_spec

    if find_spec(name) is None:
        raise DmoleError(f"--log-to {name} needs the package {name}, not installed here", f"pip install {name}")
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    kind: Any = LOGGER_TYPE_TO_CLASS[name]
    values = {
        key: value if isinstance(value, int | float | str | bool) else str(value) for key, value in settings.items()
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tracker = kind(label, logging_dir=folder) if kind.requires_logging_directory else kind(label)
        if hasattr(tracker, "start"):
            tracker.start()
        tracker.store_init_configuration(values)
    except Exception as error:  # trackers raise anything: no network, no account, an unwritable folder
        raise DmoleError(f"--log-to {name} cannot start: {first_line(error)}", "leave --log-to out") from error

    def log(figures: StepFigures) -> None:
        tracker.log({key: getattr(figures, key) for key in LOGGED}, step=figures.step)

    return log, tracker.finish
