"""MiniCPM-V 4.6: an image becomes the whole image and slices; the patches of all of them are packed into one sequence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from dmole_cli.backbones.encoded import Encoded
from dmole_cli.backbones.families.base import Family
from dmole_cli.backbones.image_layouts import PIXELS, View, runs_of

GRIDS = "target_sizes"  # patches per column and row of each slice


class MiniCPMV46(Family):
    """`pixel_values` [1, channels, patch size, patch size · patches]; each patch is a row of the vision encoder."""

    def vision_rows(self, vision: Mapping[str, torch.Tensor]) -> int:
        """Number of patches of all slices."""
        return int(vision[GRIDS].prod(dim=1).sum())

    def join(self, samples: Sequence[Encoded], *, length: int, left: bool) -> dict[str, torch.Tensor]:
        """The patches of all samples, one after the other, and their grids."""
        visions = [sample.vision for sample in samples if PIXELS in sample.vision]
        if not visions:
            return {}
        return {
            PIXELS: torch.cat([vision[PIXELS] for vision in visions], dim=-1),
            GRIDS: torch.cat([vision[GRIDS] for vision in visions]),
        }

    def whole_images(self, vision: Mapping[str, torch.Tensor], tokens: torch.Tensor, *, images: int) -> list[View]:
        """The slices whose tokens follow the token that starts an image."""
        start = self.processor.tokenizer.convert_tokens_to_ids(self.processor.image_start_token)
        before = [tokens[first - 1].item() for first, _ in runs_of(tokens, self.processor.image_token_id)]
        widths = (vision[GRIDS].prod(dim=1) * vision[PIXELS].shape[2]).tolist()
        slices = zip(vision[PIXELS][0].split(widths, dim=-1), vision[GRIDS], before, strict=True)
        return [{PIXELS: pixels, GRIDS: grid} for pixels, grid, token in slices if token == start]
