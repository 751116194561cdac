"""Perception LM: an image becomes a thumbnail and tiles that follow its shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from PIL.Image import Image

from dmole_cli.backbones.encoded import Encoded
from dmole_cli.backbones.families.base import Family
from dmole_cli.backbones.image_layouts import PIXELS, View

TILES = "image_tiles"  # number of tiles of each image; it is no input of the model


class PerceptionLM(Family):
    """`pixel_values` [tiles, 1, channels, height, width]: the model would count the tiles that pad images with fewer."""

    def prepare(self, text: str, images: Sequence[Image]) -> Mapping[str, torch.Tensor]:
        """The processor's inputs, with the tiles of all images one after the other."""
        if not images:
            return super().prepare(text, images)
        inputs = self._processed(text, images, return_tensors=None)
        tiles = [torch.as_tensor(own) for own in inputs.pop(PIXELS)]
        pixels = torch.cat([own if own.dim() == 4 else own[None] for own in tiles])
        tokens = {name: torch.tensor(value) for name, value in inputs.items()}
        counts = torch.tensor([len(own) if own.dim() == 4 else 1 for own in tiles])
        return {**tokens, PIXELS: pixels[:, None], TILES: counts}

    def vision_rows(self, vision: Mapping[str, torch.Tensor]) -> int:
        """Number of tiles."""
        return len(vision[PIXELS])

    def join(self, samples: Sequence[Encoded], *, length: int, left: bool) -> dict[str, torch.Tensor]:
        """The tiles of all samples."""
        joined = super().join(samples, length=length, left=left)
        joined.pop(TILES, None)
        return joined

    def whole_images(self, vision: Mapping[str, torch.Tensor], tokens: torch.Tensor, *, images: int) -> list[View]:
        """The first tile of each image."""
        return [{PIXELS: tiles[0, 0]} for tiles in vision[PIXELS].split(vision[TILES].tolist())]
