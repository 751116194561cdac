"""LFM2-VL: an image becomes tiles and a thumbnail behind them; each is a sequence of patches, padded, with its shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dmole_cli.backbones.families._tiles import tiles_per_image, whole_tiles
from dmole_cli.backbones.families.base import Family
from dmole_cli.backbones.image_layouts import PIXELS, View

MASK, SHAPES = "pixel_attention_mask", "spatial_shapes"


class Lfm2Vl(Family):
    """The last tile of an image is its thumbnail; the vision encoder needs the shapes of its inputs."""

    def whole_images(self, vision: Mapping[str, torch.Tensor], tokens: torch.Tensor, *, images: int) -> list[View]:
        """The last tile of each image; tokens with its row and column precede the tokens of a tile."""
        marks = self.processor
        tiles = tiles_per_image(tokens, marks.tokenizer, tile=marks.image_token, end=marks.image_end_token)
        return whole_tiles(vision, tiles, which=-1)

    def vision_states(self, tower: Any, views: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """States of the patches; in place of the padding, the first patch's, which a maximum ignores."""
        states = tower(
            pixel_values=views[PIXELS], pixel_attention_mask=views[MASK], spatial_shapes=views[SHAPES]
        ).last_hidden_state
        return states.where(views[MASK][..., None].bool(), states[:, :1])
