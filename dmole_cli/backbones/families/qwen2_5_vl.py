"""Qwen2.5-VL: images keep their aspect ratio; the patches of all images are packed into one sequence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dmole_cli.backbones.families.base import Family
from dmole_cli.backbones.vllm_lora import LANGUAGE, VllmLora


class Qwen25VL(Family):
    """The generic methods are right."""

    # https://docs.vllm.ai/en/latest/api/vllm/model_executor/models/qwen2_5_vl/: the mapper, and supports_tower_connector_lora.
    vllm = VllmLora(LANGUAGE | {"model.visual.blocks.": "model.visual.blocks."})


def tiny(folder: Path, *, seed: int = 0) -> Path:
    """Write a tiny model: patches of 6 × 6, four per token; only the second block attends across windows."""
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessorPil,
    )

    from dmole_cli.backbones.families import _tiny
    from dmole_cli.backbones.processors import without_video

    marks = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    tokenizer = _tiny.tokenizer(*_tiny.CHAT_MARKS, *marks, end="<|im_end|>")
    sizes: dict[str, Any] = {"patch_size": _tiny.PATCH, "temporal_patch_size": 2, "merge_size": 2}
    size = {"shortest_edge": 24 * 24, "longest_edge": 48 * 48}
    image_processor = Qwen2VLImageProcessorPil(**sizes, size=size)
    template = _tiny.CHAT.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    processor = without_video(Qwen2_5_VLProcessor)(image_processor, tokenizer, chat_template=template)
    vision = {
        "depth": 2,
        "hidden_size": _tiny.WIDTH,
        "intermediate_size": _tiny.INNER,
        "num_heads": 2,
        "patch_size": _tiny.PATCH,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 24,
        "out_hidden_size": _tiny.WIDTH,
        "fullatt_block_indexes": [1],
        "initializer_range": 0.1,
    }
    text = _tiny.text_sizes(tokenizer) | {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}}
    config = Qwen2_5_VLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
    )
    video = {"video_processor_type": "Qwen2VLVideoProcessor", **sizes, "size": size}
    return _tiny.write(folder, lambda: Qwen2_5_VLForConditionalGeneration(config), processor, seed=seed, video=video)
