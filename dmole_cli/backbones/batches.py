"""Batches of encoded samples, prepared in a worker process while the model computes."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from dmole_cli.backbones.backbone import Backbone, Encoded
from dmole_cli.backbones.inputs import Inputs
from dmole_cli.backbones.truncation import encode_truncated
from dmole_cli.data.sample import Sample
from dmole_cli.errors import DmoleError, first_line

MIN_FOR_WORKER = 256  # samples from which a worker process is worth its start
MAX_CACHED = 4096  # encoded samples that are cached for the next epoch


class _Samples(Dataset):
    """Encodes on demand; errors are returned as values, because a worker would wrap them into a traceback."""

    def __init__(self, backbone: Backbone, samples: Sequence[Sample], *, with_answer: bool, max_length: int) -> None:
        self.backbone, self.samples, self.with_answer, self.max_length = backbone, samples, with_answer, max_length
        self.cache: dict[int, Encoded] = {}

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Encoded | DmoleError:
        if index in self.cache:
            return self.cache[index]
        try:
            encoded = self._encode(self.samples[index])
        except DmoleError as error:
            return error
        except Exception as error:  # processors raise anything on an image or a text that they do not support
            return self._unprepared(self.samples[index], error)
        if len(self.cache) < MAX_CACHED:
            self.cache[index] = encoded
        return encoded

    def _unprepared(self, sample: Sample, error: Exception) -> DmoleError:
        """The error for a sample that the processor refuses, or for a processor that refuses every sample like it."""
        number = len(sample.images)
        if not prepares(self.backbone.inputs, images=number):
            what = f"{number} images" if number > 1 else "an image" if number else "no image"
            return DmoleError(
                f"backbone '{self.backbone.name}' cannot prepare any sample with {what}: {first_line(error)}",
                "pass a --backbone whose processor takes such samples with its chat template",
            )
        message = f"sample {sample.sample_id} cannot be prepared for the backbone: {first_line(error)}"
        return DmoleError(message, "fix or remove this row")

    def _encode(self, sample: Sample) -> Encoded:
        if self.with_answer:
            return encode_truncated(self.backbone, sample, max_length=self.max_length)
        return self.backbone.encode(sample, with_answer=False)


def prepares(inputs: Inputs, *, images: int) -> bool:
    """Whether a short question about this number of plain images can be encoded."""
    plain = Image.new("RGB", (64, 48), (90, 120, 150))
    try:
        inputs.encode(Sample("probe", "What is it?", "", (), (lambda: plain,) * images), with_answer=False)
    except Exception:  # as for the sample, whose own error is the one that is reported
        return False
    return True


def _to_arrays(rows: list[Encoded | DmoleError]) -> list[Encoded | DmoleError]:
    """Convert to arrays, which a worker sends as bytes; tensors would be sent as open files, which fail loudly on Ctrl-C."""
    return [row if isinstance(row, DmoleError) else row.mapped(torch.Tensor.numpy) for row in rows]


def _ignore_interrupts(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal; only the main process handles it, and ends its worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def encoded_batches(
    backbone: Backbone,
    samples: Sequence[Sample],
    batches: Sequence[Sequence[int]],
    *,
    with_answer: bool,
    max_length: int = 0,
) -> Iterator[list[Encoded]]:
    """Encode `samples[i] for i in batch` for every batch, in order.

    Args:
        backbone: encodes the samples.
        samples: samples of a split.
        batches: indices of each batch.
        with_answer: append the answers, for training.
        max_length: maximum number of tokens with answer; longer questions are truncated; 0 for no limit.

    Raises:
        DmoleError: a sample cannot be read or encoded, or the worker process was killed.
    """
    workers = 1 if sum(len(b) for b in batches) >= MIN_FOR_WORKER else 0
    loader = DataLoader(
        _Samples(backbone, samples, with_answer=with_answer, max_length=max_length),
        batch_sampler=batches,  # type: ignore[arg-type]
        collate_fn=_to_arrays,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_ignore_interrupts,
    )
    try:
        for batch in loader:
            for row in batch:
                if isinstance(row, DmoleError):
                    raise row
            yield [row.mapped(torch.from_numpy) for row in batch]
    except RuntimeError as error:  # raised by the loader when its worker was killed
        hint = "free memory (also shared memory, /dev/shm), then run the same command again"
        raise DmoleError(f"the process that prepares batches ended: {first_line(error)}", hint) from error


def sequential_batches(count: int, batch_size: int) -> list[list[int]]:
    """Indices 0..count-1 in batches."""
    return [list(range(start, min(start + batch_size, count))) for start in range(0, count, batch_size)]
