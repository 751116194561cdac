"""InternVL: a picture becomes tiles and, where there are several, a thumbnail behind them; all lie flat in one tensor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmole_cli.backbones.image_layouts import PIXELS, View, runs

if TYPE_CHECKING:
    import torch


def whole_pictures(
    vision: Mapping[str, torch.Tensor], tokens: torch.Tensor, processor: Any, pictures: int
) -> list[View]:
    """The last tile of each picture; how many it has is told by the tokens that stand for it."""
    tiles = [length // processor.image_seq_length for _, length in runs(tokens, processor.image_token_id)]
    return [{PIXELS: own[-1]} for own in vision[PIXELS].split(tiles)]


def tiny(folder: Path, *, seed: int = 0) -> Path:
    """Write the family made tiny: 24 × 24 tiles of 4 tokens, at most four and a thumbnail a picture."""
    from transformers import (
        GotOcr2ImageProcessorPil,
        InternVLConfig,
        InternVLForConditionalGeneration,
        InternVLProcessor,
        InternVLVisionConfig,
        Qwen2Config,
    )

    from dmole_cli.backbones.families import _tiny
    from dmole_cli.backbones.processors import for_pictures

    words = _tiny.tokenizer(
        *_tiny.CHAT_MARKS,
        end="<|im_end|>",
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    size = {"height": _tiny.SIDE, "width": _tiny.SIDE}
    pictures = GotOcr2ImageProcessorPil(
        size=size, crop_to_patches=True, max_patches=4, image_mean=_tiny.MEAN, image_std=_tiny.STD
    )
    template = _tiny.CHAT.replace("PICTURE", "<IMG_CONTEXT>\n")
    processor = for_pictures(InternVLProcessor)(pictures, words, image_seq_length=4, chat_template=template)
    config = InternVLConfig(
        vision_config=InternVLVisionConfig(**_tiny.vision_sizes()),
        text_config=Qwen2Config(**_tiny.text_sizes(words)),
        image_token_id=words.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
    )
    video = {"video_processor_type": "InternVLVideoProcessor", "size": size, "image_mean": _tiny.MEAN}
    return _tiny.write(folder, lambda: InternVLForConditionalGeneration(config), processor, seed=seed, video=video)
