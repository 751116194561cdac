"""LLaVA: an image is one row of the vision encoder, or its patches are packed by a Pixtral encoder.

Of other encoders, the last layer but one feeds the language model.
"""

from __future__ import annotations

from pathlib import Path

from dmole_cli.backbones.families._pixtral import PackedImages
from dmole_cli.backbones.vllm_lora import LANGUAGE, SIGLIP, VllmLora

TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }} {% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


class Llava(PackedImages):
    """Pixtral's processor returns the sizes of images, the processors for other encoders do not."""

    # https://docs.vllm.ai/en/v0.29.0/api/vllm/model_executor/models/llava/; the names of a Pixtral encoder were not checked.
    vllm = VllmLora(LANGUAGE | SIGLIP, "vLLM is known to adapt CLIP and SigLIP encoders of LLaVA only")


def tiny(folder: Path, *, seed: int = 0) -> Path:
    """Write a tiny model: 24 × 24 images of 4 tokens from the layer before a CLIP encoder's last."""
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    from dmole_cli.backbones.families import _tiny

    tokenizer = _tiny.tokenizer("<image>", end="</s>", start="<s>")
    size = {"height": _tiny.SIDE, "width": _tiny.SIDE}
    image_processor = CLIPImageProcessorPil(size={"shortest_edge": _tiny.SIDE}, crop_size=size)
    processor = LlavaProcessor(
        image_processor,
        tokenizer,
        patch_size=12,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
        image_token="<image>",
    )
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**_tiny.vision_sizes(patch=12)),
        text_config=LlamaConfig(**_tiny.text_sizes(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=4,
    )
    return _tiny.write(folder, lambda: LlavaForConditionalGeneration(config), processor, seed=seed)
