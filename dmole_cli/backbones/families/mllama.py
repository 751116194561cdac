"""Llama 3.2 Vision: an image becomes tiles without a thumbnail; the language model attends to them by cross-attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch

from dmole_cli.backbones.encoded import Encoded
from dmole_cli.backbones.families.base import Family
from dmole_cli.backbones.image_layouts import PIXELS, View, concatenate_padded

CROSS, RATIO, TILES = "cross_attention_mask", "aspect_ratio_ids", "aspect_ratio_mask"


class Mllama(Family):
    """Tensors of a batch are [samples, images, tiles, ...], padded to the largest number of images.

    `cross_attention_mask` [1, tokens, images, tiles] says which tiles a token attends to. A row of the vision encoder is an image
    with all of its tiles.
    """

    def adapt(self, model: Any) -> None:
        """Let samples attend to no more images in a batch than they do alone."""
        vision = model.config.vision_config
        tokens = vision.max_num_tiles * ((vision.image_size // vision.patch_size) ** 2 + 1)
        for block in model.get_decoder().layers:
            if hasattr(block, "cross_attn"):
                block.register_forward_pre_hook(partial(_hide_padding, tokens), with_kwargs=True)
                block.register_forward_hook(_skip_without_images, with_kwargs=True)

    def vision_rows(self, vision: Mapping[str, torch.Tensor]) -> int:
        """Number of images, the padding of a batch included."""
        return vision[PIXELS].shape[0] * vision[PIXELS].shape[1]

    def row_owners(self, samples: Sequence[Encoded]) -> torch.Tensor:
        """As many rows for each sample as the sample with the most images has."""
        return torch.arange(len(samples)).repeat_interleave(max(sample.images for sample in samples))

    def join(self, samples: Sequence[Encoded], *, length: int, left: bool) -> dict[str, torch.Tensor]:
        """Padded tensors; samples without images get empty ones, to which no token attends."""
        first = next((sample.vision for sample in samples if PIXELS in sample.vision), None)
        if first is None:
            return {}
        names = [name for name in (PIXELS, RATIO, TILES) if name in first]
        joined = {
            name: concatenate_padded([s.vision.get(name, torch.zeros_like(first[name][:, :1])) for s in samples])
            for name in names
        }
        masks = [self._mask(sample, first[CROSS], length=length, left=left) for sample in samples]
        return {**joined, CROSS: concatenate_padded(masks)}

    def _mask(self, sample: Encoded, like: torch.Tensor, *, length: int, left: bool) -> torch.Tensor:
        """The cross-attention mask [1, length, images, tiles] of a padded sample; its answer attends as the prompt's end does."""
        own = sample.vision.get(CROSS, like.new_zeros(1, len(sample.tokens), 1, like.shape[-1]))
        answer = own[:, -1:].expand(-1, len(sample.tokens) - own.shape[1], -1, -1)
        padding = own.new_zeros(1, length - len(sample.tokens), *own.shape[2:])
        return torch.cat([padding, own, answer] if left else [own, answer, padding], dim=1)

    def whole_images(self, vision: Mapping[str, torch.Tensor], tokens: torch.Tensor, *, images: int) -> list[View]:
        """All tiles of each image: there is no thumbnail, and together they are the image."""
        names = (PIXELS, RATIO, TILES)
        return [{name: vision[name][0, image] for name in names} for image in range(images)]

    def vision_states(self, tower: Any, views: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """States of the tiles that an image has; those of the others are -inf, which no maximum takes."""
        inputs = {name: tensor[:, None] for name, tensor in views.items()}  # one image per row
        states = tower(**inputs).last_hidden_state[:, 0]  # [images, tiles, patches, width]
        missing = views[TILES] == 0
        return states.masked_fill(missing[:, :, None, None], float("-inf")).flatten(1, 2)


def _hide_padding(tokens: int, block: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
    """Hide the images that pad a sample from its tokens before the first image, which the model lets attend to all images.

    Args:
        tokens: vision tokens of an image.
        block: a cross-attention block.
        args: its arguments.
        kwargs: its keyword arguments.
    """
    mask, attends = kwargs["cross_attention_mask"], kwargs["full_text_row_masked_out_mask"]
    if mask is None or attends is None or mask.shape[-1] == tokens:
        return None
    seen = (mask == 0) & (attends != 0)  # [samples, 1, tokens, images · vision tokens]
    own = seen.unflatten(3, (-1, tokens)).any(dim=4).any(dim=2)[:, :, None].repeat_interleave(tokens, dim=3)
    hidden = torch.zeros_like(mask).masked_fill(~own, torch.finfo(mask.dtype).min)
    return args, {**kwargs, "cross_attention_mask": mask.where(attends != 0, hidden)}


def _skip_without_images(block: Any, args: tuple, kwargs: dict[str, Any], output: torch.Tensor) -> torch.Tensor:
    """Let samples without images skip the block, as they do where no sample of the batch has images."""
    attends = kwargs["full_text_row_masked_out_mask"]  # [samples, 1, tokens, 1], 1 where a token attends to any tile
    if attends is None:
        return output
    states = args[0] if args else kwargs["hidden_states"]
    return output.where((attends != 0).any(dim=2), states)
