"""Shared by families whose questions are about one image: their models take no other number of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from PIL.Image import Image

from dmole_cli.backbones.families.base import Family
from dmole_cli.errors import DmoleError


class OneImage(Family):
    """The processor puts the tokens of the image before the question."""

    def prepare(self, text: str, images: Sequence[Image]) -> Mapping[str, torch.Tensor]:
        """Model inputs of a sample with one image.

        Raises:
            DmoleError: the sample has no image, or several.
        """
        if len(images) != 1:
            raise DmoleError(
                f"a sample has {len(images) or 'no'} images, but the backbone takes questions about one image: "
                f"{type(self.processor).__name__} has no place for another number",
                "remove such rows, or pass a --backbone that takes several images and texts without one",
            )
        return self.processor(text=[text], images=list(images), return_tensors="pt")
