"""Shared by families that split an image into tiles: which row of the vision encoder shows the image as a whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch

from dmole_cli.backbones.image_layouts import PIXELS, View, runs_of
from dmole_cli.errors import DmoleError


def global_images(
    vision: Mapping[str, torch.Tensor], tokens: torch.Tensor, processor: Any, *, marker: str
) -> list[View]:
    """The tiles of `pixel_values` [1, tiles, channels, height, width] whose image tokens follow the marker of a whole image."""
    wanted = processor.tokenizer.convert_tokens_to_ids(marker)
    before = [tokens[start - 1].item() for start, _ in runs_of(tokens, processor.image_token_id)]
    return [{PIXELS: tile} for tile, token in zip(vision[PIXELS][0], before, strict=True) if token == wanted]


def tiles_per_image(tokens: torch.Tensor, tokenizer: Any, *, tile: str, end: str) -> list[int]:
    """Number of tiles of each image, for prompts in which other tokens separate the image tokens of the tiles.

    Args:
        tokens: the prompt [length].
        tokenizer: its tokenizer.
        tile: the image token.
        end: the token behind the last tile of an image.
    """
    image, last = tokenizer.convert_tokens_to_ids([tile, end])
    ends = (tokens == last).cumsum(0)
    counts = Counter(int(ends[start]) for start, _ in runs_of(tokens, image))
    return [counts[number] for number in sorted(counts)]


def whole_tiles(vision: Mapping[str, torch.Tensor], tiles: list[int], *, which: int) -> list[View]:
    """The tile of each image that shows it as a whole.

    Args:
        vision: tensors with one row per tile.
        tiles: number of tiles of each image.
        which: its index among the image's tiles: 0 for the first, -1 for the last.

    Raises:
        DmoleError: the prompt has image tokens of another number of tiles.
    """
    if sum(tiles) != len(vision[PIXELS]):
        raise DmoleError(
            f"the prompt has image tokens of {sum(tiles)} tiles, but the processor returns {len(vision[PIXELS])}",
            "pass a --backbone with the processor settings that it was published with",
        )
    parts = {name: tensor.split(tiles) for name, tensor in vision.items() if len(tensor) == sum(tiles)}
    return [{name: own[image][which] for name, own in parts.items()} for image in range(len(tiles))]
