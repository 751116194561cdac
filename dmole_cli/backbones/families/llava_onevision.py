"""LLaVA-OneVision: a picture becomes the whole of it, then crops after its shape, and tokens after its unpadded size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def picture_tokens(processor: Any, sizes: Sequence[tuple[int, int]], pictures: int) -> Sequence[int]:
    """Only a picture that is alone becomes crops; one of several is the whole of it, with the end of a line."""
    if pictures == 1:
        return processor._get_num_multimodal_tokens(image_sizes=sizes)["num_image_tokens"]
    left_out = processor.vision_feature_select_strategy == "default"
    return [processor.num_image_tokens + 1 - left_out] * len(sizes)


def tiny(folder: Path, *, seed: int = 0) -> Path:
    """Write the family made tiny: 24 × 24 crops of 9 tokens, at most four and the whole picture."""
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        LlavaOnevisionImageProcessorPil,
        LlavaOnevisionProcessor,
        Qwen2Config,
        SiglipVisionConfig,
    )

    from dmole_cli.backbones.families import _tiny
    from dmole_cli.backbones.processors import for_pictures

    words = _tiny.tokenizer(*_tiny.CHAT_MARKS, end="<|im_end|>", image_token="<image>", video_token="<video>")
    side = _tiny.SIDE
    size = {"height": side, "width": side}
    grids = [[side, side], [side, 2 * side], [2 * side, side], [2 * side, 2 * side], [side, 3 * side]]
    pictures = LlavaOnevisionImageProcessorPil(size=size, image_grid_pinpoints=grids)
    processor = for_pictures(LlavaOnevisionProcessor)(
        pictures,
        words,
        num_image_tokens=9,
        vision_feature_select_strategy="full",
        chat_template=_tiny.CHAT.replace("PICTURE", "<image>\n"),
    )
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**_tiny.vision_sizes(patch=8), vision_use_head=False),
        text_config=Qwen2Config(**_tiny.text_sizes(words)),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        video_token_index=words.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=grids,
    )
    video = {"video_processor_type": "LlavaOnevisionVideoProcessor", "size": size}
    return _tiny.write(
        folder, lambda: LlavaOnevisionForConditionalGeneration(config), processor, seed=seed, video=video
    )
