"""InternVL: an image becomes tiles and, where there are several, a thumbnail behind them; all in one flat tensor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from dmole_cli.backbones.families.base import Family
from dmole_cli.backbones.image_layouts import PIXELS, View, runs_of
from dmole_cli.backbones.vllm_lora import LANGUAGE, VllmLora


class InternVL(Family):
    """The last tile of an image is its thumbnail."""

    # vLLM runs checkpoints in the format of transformers with the class of Intern-S1, which has LoRA, but does not set
    # supports_tower_connector_lora: https://docs.vllm.ai/en/latest/api/vllm/model_executor/models/interns1/ and
    # https://github.com/vllm-project/vllm/pull/48129.
    vllm = VllmLora(LANGUAGE, "vLLM ignores adapters of the vision encoder of InternVL in the format of transformers")

    def whole_images(self, vision: Mapping[str, torch.Tensor], tokens: torch.Tensor, *, images: int) -> list[View]:
        """The last tile of each image; the lengths of the runs of image tokens give the number of its tiles."""
        runs = runs_of(tokens, self.processor.image_token_id)
        tiles = [length // self.processor.image_seq_length for _, length in runs]
        return [{PIXELS: own[-1]} for own in vision[PIXELS].split(tiles)]


def tiny(folder: Path, *, seed: int = 0) -> Path:
    """Write a tiny model: 24 × 24 tiles of 4 tokens, at most four per image and a thumbnail."""
    from transformers import (
        GotOcr2ImageProcessorPil,
        InternVLConfig,
        InternVLForConditionalGeneration,
        InternVLProcessor,
        InternVLVisionConfig,
        Qwen2Config,
    )

    from dmole_cli.backbones.families import _tiny
    from dmole_cli.backbones.processors import without_video

    tokenizer = _tiny.tokenizer(
        *_tiny.CHAT_MARKS,
        end="<|im_end|>",
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    size = {"height": _tiny.SIDE, "width": _tiny.SIDE}
    image_processor = GotOcr2ImageProcessorPil(
        size=size, crop_to_patches=True, max_patches=4, image_mean=_tiny.MEAN, image_std=_tiny.STD
    )
    template = _tiny.CHAT.replace("IMAGE", "<IMG_CONTEXT>\n")
    processor = without_video(InternVLProcessor)(image_processor, tokenizer, image_seq_length=4, chat_template=template)
    config = InternVLConfig(
        vision_config=InternVLVisionConfig(**_tiny.vision_sizes()),
        text_config=Qwen2Config(**_tiny.text_sizes(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
    )
    video = {"video_processor_type": "InternVLVideoProcessor", "size": size, "image_mean": _tiny.MEAN}
    return _tiny.write(folder, lambda: InternVLForConditionalGeneration(config), processor, seed=seed, video=video)
