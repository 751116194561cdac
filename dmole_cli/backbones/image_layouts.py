"""Image tensors of processors: their names, and how those of several samples are joined.

The layouts themselves are described in `families/base.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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


def images_of(vision: Mapping[str, torch.Tensor], images: int, *, pixels: str = PIXELS) -> list[View]:
    """The image tensors of a sample, separated by image; tensors that do not belong to single images are left out.

    Args:
        vision: tensors with one element per image, or packed patches with `image_grid_thw`.
        images: number of images.
        pixels: name of the pixels.
    """
    parts = {name: list(tensor) for name, tensor in vision.items() if len(tensor) == images and name != pixels}
    if GRIDS in vision:
        parts[pixels] = list(vision[pixels].split(vision[GRIDS].prod(dim=1).tolist()))
    else:
        parts[pixels] = list(vision[pixels])
    names = [pixels, *(name for name in parts if name != pixels)]
    return [{name: parts[name][image] for name in names} for image in range(images)]
