"""Command A Vision: an image becomes tiles and, where there are several, a thumbnail behind them."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from dmole_cli.backbones.families._tiles import tiles_per_image, whole_tiles
from dmole_cli.backbones.families.base import Family
from dmole_cli.backbones.image_layouts import View


class Cohere2Vision(Family):
    """The last tile of an image is its thumbnail."""

    def whole_images(self, vision: Mapping[str, torch.Tensor], tokens: torch.Tensor, *, images: int) -> list[View]:
        """The last tile of each image; line breaks separate the tokens of its tiles."""
        marks = self.processor
        tiles = tiles_per_image(tokens, marks.tokenizer, tile=marks.image_token, end=marks.eoi_token)
        return whole_tiles(vision, tiles, which=-1)
