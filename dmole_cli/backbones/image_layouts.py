"""Image tensors of processors: their names, and how those of several samples are joined.

The layouts themselves are described in `families/base.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

PIXELS, GRIDS = "pixel_values", "image_grid_thw"
View = dict[str, torch.Tensor]  # inputs of the vision encoder for one image, without a batch dimension


def concatenate_padded(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Concatenate along the first dimension, all others padded with zeros at the end to the largest size."""
    if len({tensor.shape[1:] for tensor in tensors}) == 1:
        return torch.cat(list(tensors))
    largest = [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]

    def padded(tensor: torch.Tensor) -> torch.Tensor:
        # `pad` expects (before, after) pairs from the last dimension to the second.
        missing = [most - own for most, own in zip(largest, tensor.shape[1:], strict=True)]
        return F.pad(tensor, [size for gap in reversed(missing) for size in (0, gap)])

    return torch.cat([padded(tensor) for tensor in tensors])


def runs_of(tokens: torch.Tensor, token: int) -> list[tuple[int, int]]:
    """Runs of one token in tokens [length]: (start, length) of each, in order."""
    values, lengths = torch.unique_consecutive(tokens, return_counts=True)
    starts, own = lengths.cumsum(0) - lengths, values == token
    return list(zip(starts[own].tolist(), lengths[own].tolist(), strict=True))
