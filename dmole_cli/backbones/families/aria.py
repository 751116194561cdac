"""Aria: images padded to a square, with a mask of their pixels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dmole_cli.backbones.families.base import Family
from dmole_cli.backbones.image_layouts import PIXELS

MASK = "pixel_mask"


class Aria(Family):
    """Patches without any pixel of the image are padding."""

    def vision_states(self, tower: Any, views: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """States of the patches; in place of the padding, the first patch's, which a maximum ignores."""
        patch = tower.config.patch_size
        own = views[MASK].unfold(1, patch, patch).unfold(2, patch, patch).any(dim=-1).any(dim=-1)
        states = tower(pixel_values=views[PIXELS], patch_attention_mask=own).last_hidden_state
        return states.where(own.flatten(1)[..., None], states[:, :1])
