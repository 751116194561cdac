"""Shared by families whose processor returns the whole image, then its crops: [images, crops, channels, height, width]."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from dmole_cli.backbones.families.base import Family
from dmole_cli.backbones.image_layouts import PIXELS, View


class WholeImageFirst(Family):
    """The first crop of an image is the whole image; those behind its own are padding, all zero."""

    def whole_images(self, vision: Mapping[str, torch.Tensor], tokens: torch.Tensor, *, images: int) -> list[View]:
        """The first crop of each image."""
        return [{PIXELS: crops[0] if crops.dim() == 4 else crops} for crops in vision[PIXELS]]
