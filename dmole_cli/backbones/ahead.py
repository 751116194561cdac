"""Collated batches; on CUDA, the next one is made and copied to the device while the model computes on the present one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from dmole_cli.backbones.backbone import Backbone, Encoded

Item = TypeVar("Item")
Result = TypeVar("Result")
# The encoded samples, the model's inputs, and modality -> sample index of each row (see `Inputs.collate`).
Collated = tuple[list[Encoded], dict[str, torch.Tensor], dict[str, torch.Tensor]]


def collated(
    backbone: Backbone, batches: Iterable[list[Encoded]], *, left: bool, few_lengths: bool = False
) -> Iterator[Collated]:
    """Collate every batch (see `Backbone.collate`), in order.

    On CUDA, a thread takes the next batch, collates it and copies it to the device, on a stream of its own, so that neither the
    processor's work nor the copy delays the model. Two batches are on the device then. On other devices, a batch is collated when
    it is asked for.

    Args:
        backbone: its device decides.
        batches: encoded samples.
        left: pad on the left (generation) or on the right (training).
        few_lengths: see `Inputs.collate`.
    """
    if backbone.device.type != "cuda":
        for batch in batches:
            yield batch, *backbone.collate(batch, left=left, few_lengths=few_lengths)
        return
    device, stream = backbone.device, torch.cuda.Stream(backbone.device)

    def copied(batch: list[Encoded]) -> tuple[Collated, torch.cuda.Event]:
        with torch.cuda.device(device), torch.cuda.stream(stream):
            return (batch, *backbone.collate(batch, left=left, few_lengths=few_lengths)), stream.record_event()

    for (batch, inputs, rows), event in one_ahead(batches, copied):
        present = torch.cuda.current_stream(device)
        present.wait_event(event)
        for tensor in (*inputs.values(), *rows.values()):
            if tensor.is_cuda:
                tensor.record_stream(present)  # its memory is free only after what this stream does with it
        yield batch, inputs, rows


def one_ahead(items: Iterable[Item], prepare: Callable[[Item], Result]) -> Iterator[Result]:
    """Yield `prepare(item)` of each item, in order; a thread takes and prepares the next item while the caller uses the last one.

    An error of `items` or `prepare` is raised when its item's turn comes. Once closed, the thread has ended.
    """
    source = iter(items)
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as thread:

        def following() -> list[Result]:
            # A list, because StopIteration cannot pass through a future.
            return next(([prepare(item)] for item in source), [])

        ready = thread.submit(following)
        while found := ready.result():
            ready = thread.submit(following)
            yield found.pop()
