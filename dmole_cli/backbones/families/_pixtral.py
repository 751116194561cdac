"""Shared by families with a Pixtral encoder: the patches of all images in one sequence, [1, patches, width]."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from dmole_cli.backbones.families.base import Family

SIZES = "image_sizes"  # (height, width) in pixels of each image, without padding


class PackedImages(Family):
    """Each patch is a row; where the processor returns no sizes of images, each image is one."""

    def vision_rows(self, vision: Mapping[str, torch.Tensor]) -> int:
        """Number of patches of all images."""
        if SIZES not in vision:
            return super().vision_rows(vision)
        return int((vision[SIZES] // self.processor.patch_size).prod(dim=1).sum())
