"""Memory estimates of profiling and training: tensors on FakeTensors, weights, libraries, heap fragmentation."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from dmole_cli.backbones.backbone import Backbone, Encoded
from dmole_cli.backbones.truncation import encode_truncated
from dmole_cli.data.sample import Sample
from dmole_cli.profiling.memory import held_bytes, peak_bytes

# Heap fragmentation of a CPU process: freed memory that no later tensor fits into. It grows with what a step allocates, which
# checkpointing does not reduce, and is this share of the tensors without checkpointing. Measured with glibc by
# pipelines/bench/plan.py; a GPU's caching allocator fragments less for batches of equal size.
FRAGMENTATION = 0.35


@dataclass(frozen=True)
class MemoryEstimate:
    """Peak memory of one kind of work, in bytes.

    Attributes:
        batch_size: samples per batch.
        tokens: tokens of the longest sample.
        precision: precision of losses.
        checkpointing: whether activations are recomputed.
        tensors: activations, gradients and optimizer state at the peak.
        weights: weights of the backbone.
        libraries: the process with all libraries imported; 0 where the system does not report it.
        samples: prepared samples that are kept because they are used again.
        process: total of a CPU process.
    """

    batch_size: int
    tokens: int
    precision: str
    checkpointing: bool
    tensors: int
    weights: int
    libraries: int
    samples: int
    process: int


def estimate_memory(
    backbone: Backbone, batch: Sequence[Encoded], work: Callable[..., object], *, libraries: int, samples: int = 0
) -> list[MemoryEstimate]:
    """Estimate `work(checkpointing=False)` and `work(checkpointing=True)`.

    Args:
        backbone: with a model of `as_fake_tensors`.
        batch: samples of the batches that `work` processes.
        work: profiling or training steps with this backbone.
        libraries: result of `library_bytes`.
        samples: bytes of prepared samples that are kept.
    """
    weights, found = held_bytes(backbone.model), list[MemoryEstimate]()
    for checkpointing in (False, True):
        tensors = peak_bytes(backbone.model, partial(work, checkpointing=checkpointing))
        plain = found[0].tensors if found else tensors
        found.append(
            MemoryEstimate(
                batch_size=len(batch),
                tokens=max(len(sample.tokens) for sample in batch),
                precision=backbone.precision,
                checkpointing=checkpointing,
                tensors=tensors,
                weights=weights,
                libraries=libraries,
                samples=samples,
                process=libraries + weights + tensors + samples + round(FRAGMENTATION * plain),
            )
        )
    return found


def longest_batch(
    backbone: Backbone, samples: Sequence[Sample], lengths: Sequence[int], batch_size: int, *, max_length: int = 0
) -> list[Encoded]:
    """Encode the longest samples of a split, with answers, truncated as training truncates them.

    Args:
        backbone: encodes them.
        samples: the split.
        lengths: number of tokens of each sample.
        batch_size: number of samples.
        max_length: maximum number of tokens of a sample, 0 for no limit.
    """
    rows = sorted(range(len(samples)), key=lambda row: -lengths[row])[:batch_size]
    return [encode_truncated(backbone, samples[row], max_length=max_length) for row in rows]


def library_bytes() -> int:
    """Resident memory of this process, with everything loaded that libraries load at first use; 0 if unknown."""
    import pyarrow
    import pyarrow.parquet

    try:
        import resource
    except ImportError:  # Windows
        return 0
    patches, projection = nn.Conv2d(3, 64, 8, 8), nn.Linear(64, 64)
    states = projection(patches(torch.zeros(1, 3, 32, 32)).flatten(2).transpose(1, 2))[:, None]
    attended = F.scaled_dot_product_attention(states, states, states)
    F.cross_entropy(attended.flatten(0, 2), torch.zeros(16, dtype=torch.long)).backward()
    torch.optim.AdamW(projection.parameters()).step()
    pyarrow.parquet.write_table(pyarrow.table({"number": [0.0]}), pyarrow.BufferOutputStream())
    status = Path("/proc/self/statm")
    if status.exists():  # on Linux, ru_maxrss starts at the size of the parent process
        return int(status.read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024
