"""Molmo 2: an image becomes the whole image and overlapping crops, which its tokens pool by indices of patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from dmole_cli.backbones.encoded import Encoded
from dmole_cli.backbones.families.base import Family
from dmole_cli.backbones.image_layouts import PIXELS, View

POOLING, CROPS = "image_token_pooling", "image_num_crops"


class Molmo2(Family):
    """`image_token_pooling` [tokens, patches per token] counts the patches of a whole batch, -1 for none."""

    def join(self, samples: Sequence[Encoded], *, length: int, left: bool) -> dict[str, torch.Tensor]:
        """Concatenated tensors; the indices of patches continue from sample to sample."""
        joined = super().join(samples, length=length, left=left)
        if POOLING in joined:
            with_images = [sample.vision for sample in samples if POOLING in sample.vision]
            parts, before = [], 0
            for vision in with_images:
                own = vision[POOLING]
                parts.append(torch.where(own < 0, own, own + before))
                before += vision[PIXELS].shape[0] * vision[PIXELS].shape[1]
            joined[POOLING] = torch.cat(parts)
        return joined

    def whole_images(self, vision: Mapping[str, torch.Tensor], tokens: torch.Tensor, *, images: int) -> list[View]:
        """The first crop of each image."""
        return [{PIXELS: crops[0]} for crops in vision[PIXELS].split(vision[CROPS].tolist())]
