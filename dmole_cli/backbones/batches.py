"""Seeded batches of encoded samples, prepared in a worker process while the model computes."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import DataLoader, Dataset

from dmole_cli.backbones.backbone import Backbone, Encoded
from dmole_cli.backbones.truncation import fitted
from dmole_cli.data.sample import Sample
from dmole_cli.errors import DmoleError

WORKER_FROM = 256  # samples from which a worker process pays for its start
KEPT = 4096  # encoded samples that a worker keeps for the next pass


class _Samples(Dataset):
    """Encodes on demand; an error travels as a value, because a worker would wrap it into a traceback."""

    def __init__(self, backbone: Backbone, samples: Sequence[Sample], *, with_answer: bool, max_length: int) -> None:
        self.backbone, self.samples, self.with_answer, self.max_length = backbone, samples, with_answer, max_length
        self.kept: dict[int, Encoded] = {}

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Encoded | DmoleError:
        if index in self.kept:
            return self.kept[index]
        try:
            encoded = self._encode(self.samples[index])
        except DmoleError as error:
            return error
        except Exception as error:  # whatever a processor says to a picture or a text that it cannot take
            name, why = self.samples[index].sample_id, str(error).strip().splitlines() or [type(error).__name__]
            return DmoleError(f"sample {name} cannot be prepared for the backbone: {why[0]}", "mend or remove this row")
        if len(self.kept) < KEPT:
            self.kept[index] = encoded
        return encoded

    def _encode(self, sample: Sample) -> Encoded:
        if self.with_answer:
            return fitted(self.backbone, sample, max_length=self.max_length)
        return self.backbone.encode(sample, with_answer=False)


def _to_arrays(rows: list[Encoded | DmoleError]) -> list[Encoded | DmoleError]:
    """Arrays travel from the worker as bytes; tensors would travel as open files, which a Ctrl-C tears apart loudly."""
    return [row if isinstance(row, DmoleError) else row.mapped(torch.Tensor.numpy) for row in rows]


def _leave_signals(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal; the main one alone answers, and ends its worker."""
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
    """Encode `samples[i] for i in batch` for every batch, in order; with answers, in at most `max_length` tokens if over 0.

    Raises:
        DmoleError: a sample cannot be read.
    """
    workers = 1 if sum(len(b) for b in batches) >= WORKER_FROM else 0
    loader = DataLoader(
        _Samples(backbone, samples, with_answer=with_answer, max_length=max_length),
        batch_sampler=batches,  # type: ignore[arg-type]
        collate_fn=_to_arrays,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_leave_signals,
    )
    try:
        for batch in loader:
            for row in batch:
                if isinstance(row, DmoleError):
                    raise row
            yield [row.mapped(torch.from_numpy) for row in batch]
    except RuntimeError as error:  # the loader's own: its worker was killed
        why = str(error).splitlines()[0]
        hint = "free memory (also shared memory, /dev/shm), then run the same command again"
        raise DmoleError(f"the process that prepares batches ended: {why}", hint) from error


def sequential_batches(count: int, batch_size: int) -> list[list[int]]:
    """Indices 0..count-1 in batches."""
    return [list(range(start, min(start + batch_size, count))) for start in range(0, count, batch_size)]
