"""Ovis2: an image becomes the whole image and, if it is large, tiles behind it."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from dmole_cli.backbones.families._tiles import tiles_per_image, whole_tiles
from dmole_cli.backbones.families.base import Family
from dmole_cli.backbones.image_layouts import View


class Ovis2(Family):
    """The first tile of an image is the whole image."""

    def whole_images(self, vision: Mapping[str, torch.Tensor], tokens: torch.Tensor, *, images: int) -> list[View]:
        """The first tile of each image; tokens for the grid, columns and rows separate the tokens of its tiles."""
        tiles = tiles_per_image(tokens, self.processor.tokenizer, tile="<IMG_ATOM>", end="<IMG_END>")
        return whole_tiles(vision, tiles, which=0)
