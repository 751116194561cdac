"""Batches of encoded samples, prepared in worker processes while the model computes."""

from __future__ import annotations

import os
import signal
import warnings
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from dmole_cli.backbones.backbone import Backbone, Encoded
from dmole_cli.backbones.inputs import Inputs
from dmole_cli.backbones.truncation import encode_truncated
from dmole_cli.data.sample import Sample
from dmole_cli.errors import DmoleError, first_line

AUTO = -1  # workers by the machine's cores
# Samples from which a worker process is worth its start: beside a model on the CPU, and beside one that would wait for its data.
MIN_FOR_WORKER, MIN_BESIDE_DEVICE = 256, 16
MAX_WORKERS = 8  # of a process: more only take memory, because no step waits for its data any more

RAW = np.dtype("V2")


class _Samples(Dataset):
    """Encodes on demand; errors are returned as values, because a worker would wrap them into a traceback."""

    def __init__(self, backbone: Backbone, samples: Sequence[Sample], *, with_answer: bool, max_length: int) -> None:
        self.backbone, self.samples, self.with_answer, self.max_length = backbone, samples, with_answer, max_length

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Encoded | DmoleError:
        try:
            return self._encode(self.samples[index])
        except DmoleError as error:
            return error
        except Exception as error:  # processors raise anything on an image or a text that they do not support
            return self._unprepared(self.samples[index], error)

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
    return [row if isinstance(row, DmoleError) else row.mapped(_to_array) for row in rows]


def _to_array(tensor: torch.Tensor) -> np.ndarray:
    """NumPy has no bfloat16; such values are sent as two bytes without a meaning."""
    return tensor.view(torch.int16).numpy().view(RAW) if tensor.dtype == torch.bfloat16 else tensor.numpy()


def _to_tensor(array: np.ndarray) -> torch.Tensor:
    return (
        torch.from_numpy(array.view(np.int16)).view(torch.bfloat16) if array.dtype == RAW else torch.from_numpy(array)
    )


def _to_tensors(row: Encoded | DmoleError) -> Encoded | DmoleError:
    return row if isinstance(row, DmoleError) else row.mapped(_to_tensor)


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
    workers: int = AUTO,
    cache: int = 0,
) -> Iterator[list[Encoded]]:
    """Encode `samples[i] for i in batch` for every batch, in order; the result does not depend on workers and cache.

    At most about two batches are prepared in advance, whatever the number of workers: each batch is divided among them.

    Args:
        backbone: encodes the samples.
        samples: samples of a split.
        batches: indices of each batch.
        with_answer: append the answers, for training.
        max_length: maximum number of tokens with answer; longer questions are truncated; 0 for no limit.
        workers: processes that encode; 0 encodes in this process; `AUTO` decides by cores, device and number of samples.
        cache: bytes of encoded samples that are held in memory, for samples that occur in several batches; shared with the
            other processes that torchrun started on this machine.

    Raises:
        DmoleError: a sample cannot be read or encoded, or a worker process was killed.
    """
    source = _Samples(backbone, samples, with_answer=with_answer, max_length=max_length)
    cached = _Cache(cache // local_processes())
    count = automatic_workers(batches, backbone.device) if workers == AUTO else workers
    prepared = _by_workers(source, batches, cached, count) if count else _by_this_process(source, batches, cached)
    try:
        for batch, new in prepared:
            for row in new.values():
                if isinstance(row, DmoleError):
                    raise row
            encoded = [new[index] if index in new else cached.rows[index] for index in batch]
            cached.add(new)
            del new  # not held while the model computes
            yield encoded
            del encoded
    except RuntimeError as error:  # raised by the loader when a worker was killed
        hint = "free memory (also shared memory, /dev/shm), then run the same command again"
        raise DmoleError(f"the process that prepares batches ended: {first_line(error)}", hint) from error


class _Cache:
    """Encoded samples by index, up to a number of bytes. Nothing is replaced: in epochs of random order no choice is better.

    It is in the process that uses the batches, so that its size is exact and every sample in it serves all workers.
    """

    def __init__(self, limit: int) -> None:
        self.free, self.rows = limit, dict[int, Encoded]()

    def add(self, new: Mapping[int, Encoded]) -> None:
        for index, row in new.items():
            if index not in self.rows and row.nbytes <= self.free:
                self.rows[index] = row
                self.free -= row.nbytes


# A batch, and those of its samples that were not in the cache.
_Prepared = Iterator[tuple[Sequence[int], dict[int, Any]]]


def _by_this_process(source: _Samples, batches: Sequence[Sequence[int]], cached: _Cache) -> _Prepared:
    for batch in batches:
        yield batch, {index: source[index] for index in dict.fromkeys(batch) if index not in cached.rows}


def _by_workers(source: _Samples, batches: Sequence[Sequence[int]], cached: _Cache, workers: int) -> _Prepared:
    planned = deque[tuple[list[int], int]]()  # of each batch that was begun: what is encoded, in how many pieces

    def pieces() -> Iterator[list[int]]:
        for batch in batches:
            missing = [index for index in dict.fromkeys(batch) if index not in cached.rows]
            parts = sequential_batches(len(missing), max(1, -(-len(missing) // workers)))
            planned.append((missing, len(parts)))
            yield from ([missing[i] for i in part] for part in parts)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about more workers than cores, which somebody asked for
        loader = DataLoader(
            source,
            batch_sampler=pieces(),  # type: ignore[arg-type]
            collate_fn=_to_arrays,
            num_workers=workers,
            prefetch_factor=2,
            worker_init_fn=_ignore_interrupts,
            generator=torch.Generator(),  # the loader draws from it: dropout must not depend on the number of workers
        )
        arriving = iter(loader)
    for batch in batches:
        # The loader has asked for the piece after the last one that it returned, so this batch is planned.
        missing, count = planned.popleft()
        rows = [row for _ in range(count) for row in next(arriving)]
        yield batch, dict(zip(missing, map(_to_tensors, rows), strict=True))


def automatic_workers(batches: Sequence[Sequence[int]], device: torch.device) -> int:
    """Number of workers for these batches on this machine."""
    # Batches may be made on access, so that only two of them are looked at: the last of an epoch is smaller.
    samples = len(batches) * max((len(batches[i]) for i in (0, -1)), default=0) if batches else 0
    if samples < (MIN_FOR_WORKER if device.type == "cpu" else MIN_BESIDE_DEVICE):
        return 0
    share = cores() // local_processes()
    # On the CPU, one core is for the model; on a device, this process mostly waits.
    return min(MAX_WORKERS, max(0, share - 1) if device.type == "cpu" else max(1, share))


def cores() -> int:
    """Number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def local_processes() -> int:
    """Number of processes that torchrun or `accelerate launch` started on this machine, 1 without these."""
    return max(1, int(os.environ.get("LOCAL_WORLD_SIZE") or 1))


def sequential_batches(count: int, batch_size: int) -> list[list[int]]:
    """Indices 0..count-1 in batches."""
    return [list(range(start, min(start + batch_size, count))) for start in range(0, count, batch_size)]
