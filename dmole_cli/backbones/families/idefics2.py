"""Idefics2: images padded to the largest, with a mask; where splitting is on, four crops, then the whole image."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from dmole_cli.backbones.families.base import Family
from dmole_cli.backbones.image_layouts import PIXELS, View

MASK = "pixel_attention_mask"


class Idefics2(Family):
    """Rows of a sample are [1, images × (crops + 1), channels, height, width]."""

    def vision_rows(self, vision: Mapping[str, torch.Tensor]) -> int:
        """Rows with any pixel in the mask; the others pad samples with fewer images."""
        return int(vision[MASK].flatten(2).any(dim=2).sum())

    def whole_images(self, vision: Mapping[str, torch.Tensor], tokens: torch.Tensor, *, images: int) -> list[View]:
        """The last row of each image without its padding, so that it does not depend on other images."""
        own = vision[PIXELS].shape[1] // images
        rows, masks = vision[PIXELS][0, own - 1 :: own], vision[MASK][0, own - 1 :: own]
        sizes = [(int(mask.any(dim=1).sum()), int(mask.any(dim=0).sum())) for mask in masks]
        return [{PIXELS: row[:, :height, :width]} for row, (height, width) in zip(rows, sizes, strict=True)]
