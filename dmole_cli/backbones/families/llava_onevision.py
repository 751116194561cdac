"""LLaVA-OneVision: an image becomes the whole image and crops that follow its shape; its tokens follow its unpadded size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dmole_cli.backbones.families._crops import WholeImageFirst
from dmole_cli.backbones.vllm_lora import VllmLora


class LlavaOnevision(WholeImageFirst):
    """Only the image of a sample with a single image is cropped."""

    # https://docs.vllm.ai/en/v0.19.1/api/vllm/model_executor/models/llava_onevision/: no SupportsLoRA among its bases.
    vllm = VllmLora(
        refused="vLLM's class of LLaVA-OneVision does not support LoRA (as of 0.19.1, the last version checked)"
    )

    def image_tokens(self, sizes: Sequence[tuple[int, int]], *, images: int) -> Sequence[int]:
        """The processor's count for a single image; one of several is the whole image and a line break."""
        if images == 1:
            return super().image_tokens(sizes, images=images)
        without_first = self.processor.vision_feature_select_strategy == "default"
        return [self.processor.num_image_tokens + 1 - without_first] * len(sizes)


def tiny(folder: Path, *, seed: int = 0) -> Path:
    """Write a tiny model: 24 × 24 crops of 9 tokens, at most four per image and the whole image."""
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        LlavaOnevisionImageProcessorPil,
        LlavaOnevisionProcessor,
        Qwen2Config,
        SiglipVisionConfig,
    )

    from dmole_cli.backbones.families import _tiny
    from dmole_cli.backbones.processors import without_video

    tokenizer = _tiny.tokenizer(*_tiny.CHAT_MARKS, end="<|im_end|>", image_token="<image>", video_token="<video>")
    side = _tiny.SIDE
    size = {"height": side, "width": side}
    grids = [[side, side], [side, 2 * side], [2 * side, side], [2 * side, 2 * side], [side, 3 * side]]
    image_processor = LlavaOnevisionImageProcessorPil(size=size, image_grid_pinpoints=grids)
    processor = without_video(LlavaOnevisionProcessor)(
        image_processor,
        tokenizer,
        num_image_tokens=9,
        vision_feature_select_strategy="full",
        chat_template=_tiny.CHAT.replace("IMAGE", "<image>\n"),
    )
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**_tiny.vision_sizes(patch=8), vision_use_head=False),
        text_config=Qwen2Config(**_tiny.text_sizes(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=grids,
    )
    video = {"video_processor_type": "LlavaOnevisionVideoProcessor", "size": size}
    return _tiny.write(
        folder, lambda: LlavaOnevisionForConditionalGeneration(config), processor, seed=seed, video=video
    )
