"""The size of micro-batches: as chosen, or the largest that fits into memory."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from dmole_cli.artifacts.files import digest_of, write_json
from dmole_cli.backbones.truncation import encode_truncated
from dmole_cli.data.sample import Sample
from dmole_cli.errors import DmoleError, DmoleWarning
from dmole_cli.processes import world
from dmole_cli.settings.documents import read_json
from dmole_cli.settings.model import TrainSettings
from dmole_cli.training.batches import Active
from dmole_cli.training.loop import Batch, Trainer


def micro_batch_size(
    chosen: str,
    samples: Sequence[Sample],
    sizes: Sequence[int],
    *,
    trainer: Trainer,
    active: Active,
    remembered: Path,
    settings: TrainSettings,
) -> int:
    """Number of samples of a micro-batch; 0 for whole steps.

    Args:
        chosen: the setting: a number, or `auto` for the largest that fits, which is found once and remembered.
        samples: training samples.
        sizes: number of samples of each step.
        trainer: computes a micro-batch; its expert stays as it is.
        active: names of a sample's active experts.
        remembered: file of the sizes that were found.
        settings: recipe of the run.

    Raises:
        DmoleError: a single sample does not fit into memory.
    """
    most = max(sizes)
    if chosen != "auto":
        if world().size > 1 and not 0 < int(chosen) < most:
            share = -(-most // world().size)
            message = f"no step is divided, so that one of {world().size} processes does all the training"
            warnings.warn(DmoleWarning(f"{message}; pass --micro-batch {share} or less"), stacklevel=2)
        return int(chosen)
    backbone = trainer.backbone
    lengths = backbone.lengths(samples, with_answer=True)
    longest = sorted(range(len(samples)), key=lambda row: -lengths[row])[:most]
    device = torch.cuda.get_device_name(backbone.device) if backbone.device.type == "cuda" else backbone.device.type
    values = [settings.max_length, settings.checkpointing, settings.dropout, world().size]
    ids = [samples[row].sample_id for row in longest]
    key = digest_of([backbone.fingerprint, backbone.precision, device, most, values, ids, len(trainer.flat.matrices)])
    known = _read(remembered)
    found = world().share(known.get(key, 0))
    if not found:
        encoded = [encode_truncated(backbone, samples[row], max_length=settings.max_length) for row in longest]

        def attempt(size: int) -> None:
            chosen_rows = longest[:size]
            batch = Batch(
                [samples[row].sample_id for row in chosen_rows], [active(0, row) for row in chosen_rows], encoded[:size]
            )
            # Beside the gradients, the optimizer will hold two tensors for each parameter.
            moments = [torch.zeros_like(piece.values) for piece in trainer.flat.pieces for _ in range(2)]
            try:
                trainer.forward_and_backward(batch)
            finally:
                trainer.optimizer.zero_grad(set_to_none=True)
                moments.clear()

        found = largest_that_fits(attempt, most)
        write_json(remembered, {**known, key: found})
    return found


def _read(path: Path) -> dict[str, int]:
    """The sizes that were found; a damaged file is written again."""
    try:
        return {key: size for key, size in read_json(path).items() if isinstance(size, int) and size > 0}
    except (OSError, ValueError, AttributeError):
        return {}


def largest_that_fits(attempt: Callable[[int], None], most: int) -> int:
    """The largest of `most`, its half, and so on, for which `attempt` does not run out of memory; the smallest of all processes.

    Args:
        attempt: computes a micro-batch of this size.
        most: the largest size.

    Raises:
        DmoleError: one sample does not fit either.
    """
    from accelerate.utils import find_executable_batch_size

    size = most

    def half() -> int:
        nonlocal size
        size = size // 2
        return size

    def tried(batch_size: int) -> int:
        attempt(batch_size)
        return batch_size

    try:
        found = find_executable_batch_size(tried, starting_batch_size=most, reduce_batch_size_fn=half)()
    except RuntimeError as error:
        if "No executable batch size" not in str(error):
            raise
        raise DmoleError(
            "not even one sample fits into memory with --micro-batch auto",
            "pass --checkpointing, --max-length, or a --dtype of 16 bits; `dmole plan` shows how much is needed",
        ) from error
    return min(world().collect(found))
