"""Image tensors of processors: their names, and how those of several samples are joined.

The layouts themselves are described in `families/base.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch.nn import functional as F

from dmole_cli.errors import DmoleError

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
    own = vision[pixels].split(vision[GRIDS].prod(dim=1).tolist()) if GRIDS in vision else vision[pixels]
    parts = {pixels: list(own)}
    parts |= {name: list(tensor) for name, tensor in vision.items() if len(tensor) == images and name != pixels}
    return [{name: part[image] for name, part in parts.items()} for image in range(images)]


def spread(values: torch.Tensor, x: torch.Tensor, *, per_sample: bool) -> tuple[torch.Tensor, bool]:
    """Values of the rows of a tower's batch [rows, ...] for the rows of a site's tensor x, and whether these are packed.

    x is [rows, ..., features]; or, where the model flattens the tokens of the language model, [rows · tokens, features]; where it
    cuts images into windows, [rows · windows, height, width, features]; where all rows are packed into one sequence,
    [1, rows, features], or fewer where it merges neighbours.

    Args:
        values: one for each row of the tower's batch.
        x: input or output of a linear module.
        per_sample: whether the tower's rows are samples, as in the language model.

    Raises:
        DmoleError: x has another layout.
    """
    rows = len(values)
    if len(x) == rows:
        return values, False
    if not per_sample and x.dim() == 3 and len(x) == 1 and rows % x.shape[1] == 0:
        return values[:: rows // x.shape[1]], True
    if (per_sample or x.dim() == 4) and rows and len(x) % rows == 0:
        return values.repeat_interleave(len(x) // rows, dim=0), False
    raise unknown_rows(len(x), rows)


def unknown_rows(found: int, expected: int) -> DmoleError:
    """The error for a tensor whose rows cannot be assigned to the samples of a batch."""
    return DmoleError(
        f"a site received {found} rows, but the batch has {expected}: the rows of its images are unknown",
        "add a file for the family to dmole_cli/backbones/families/ with vision_rows (docs/backbones.md)",
    )
