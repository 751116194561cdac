"""How processors lay pictures out, told from the tensors themselves: what is whose row, and where the whole picture is.

Three layouts cover most families: a picture or tile a row [rows, channels, height, width]; rows of pictures with their
crops [rows, crops, channels, height, width], filled up with crops of zeros; and the patches of all pictures packed
[patches, entries] beside their grids `image_grid_thw` [pictures, 3].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from dmole_cli.errors import DmoleError

PIXELS, GRIDS = "pixel_values", "image_grid_thw"
View = dict[str, torch.Tensor]


def vision_rows(vision: Mapping[str, torch.Tensor]) -> int:
    """Rows of the vision encoder's tensors that these pictures become; crops of zeros are padding and become none."""
    pixels = vision[PIXELS]
    return int(pixels.flatten(2).any(dim=2).sum()) if pixels.dim() == 5 else len(pixels)


def whole_pictures(vision: Mapping[str, torch.Tensor], tokens: torch.Tensor, *, pictures: int) -> list[View]:
    """What the vision encoder takes of each picture as a whole, its tiles left out.

    Args:
        vision: picture tensors of one sample, as the processor made them.
        tokens: of its prompt [length].
        pictures: how many it has.

    Raises:
        DmoleError: the layout does not say which rows are whole pictures.
    """
    pixels = vision[PIXELS]
    if GRIDS in vision:
        grids = vision[GRIDS]
        patches = pixels.split(grids.prod(dim=1).tolist())
        return [{PIXELS: own, GRIDS: grid} for own, grid in zip(patches, grids, strict=True)]
    if len(pixels) != pictures:
        message = f"{pictures} picture(s) become {len(pixels)} tiles, and nothing says which shows a picture as a whole"
        raise DmoleError(message, "give the family a file in dmole_cli/backbones/ that says it (docs/backbones.md)")
    # Of a picture with crops, the first is the whole of it in every family that has this layout.
    return [{PIXELS: own[0] if pixels.dim() == 5 else own} for own in pixels]


def last_hidden_state(tower: Any, views: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The vision encoder's last hidden state [pictures, tokens, width] of whole pictures, stacked."""
    pixels = views[PIXELS]
    if GRIDS not in views:
        return tower(pixel_values=pixels).last_hidden_state
    states = tower(pixels.flatten(0, 1), grid_thw=views[GRIDS]).last_hidden_state
    return states.unflatten(0, (len(pixels), -1))


def joined(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Tensors of several samples one after another, all dimensions but the first filled up with zeros to the largest."""
    if len({tensor.shape[1:] for tensor in tensors}) == 1:
        return torch.cat(list(tensors))
    largest = [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]

    def filled(tensor: torch.Tensor) -> torch.Tensor:
        # From the last dimension to the second, nothing in front and what is missing behind, as `pad` wants it.
        missing = [most - own for most, own in zip(largest, tensor.shape[1:], strict=True)]
        return F.pad(tensor, [size for gap in reversed(missing) for size in (0, gap)])

    return torch.cat([filled(tensor) for tensor in tensors])


def runs(tokens: torch.Tensor, token: int) -> list[tuple[int, int]]:
    """Stretches of one token among tokens [length]: (start, length), in order."""
    found: list[tuple[int, int]] = []
    for place in (tokens == token).nonzero()[:, 0].tolist():
        start, length = found[-1] if found else (-1, 0)
        if found and start + length == place:
            found[-1] = (start, length + 1)
        else:
            found.append((place, 1))
    return found
