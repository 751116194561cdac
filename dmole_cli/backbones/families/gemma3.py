"""Gemma 3: bidirectional attention among the tokens of one image; most blocks use sliding-window attention."""

from __future__ import annotations

from pathlib import Path

from dmole_cli.backbones.families.base import Family
from dmole_cli.backbones.vllm_lora import LANGUAGE, SIGLIP, VllmLora

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<start_of_turn>"
    "{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<start_of_image>"
    "{% else %}{{ part['text'] | trim }}{% endif %}{% endfor %}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


class Gemma3(Family):
    """The generic methods are right."""

    # https://docs.vllm.ai/en/latest/api/vllm/model_executor/models/gemma3_mm/: the mapper, and supports_tower_connector_lora.
    vllm = VllmLora(LANGUAGE | SIGLIP)


def tiny(folder: Path, *, seed: int = 0) -> Path:
    """Write a tiny model: 24 × 24 images of 4 tokens; the first block has a sliding window of 16 tokens."""
    import torch
    from transformers import (
        Gemma3Config,
        Gemma3ForConditionalGeneration,
        Gemma3ImageProcessorPil,
        Gemma3Processor,
        Gemma3TextConfig,
        SiglipVisionConfig,
    )

    from dmole_cli.backbones.families import _tiny

    named = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    tokenizer = _tiny.tokenizer("<start_of_turn>", "<end_of_turn>", end="<end_of_turn>", start="<bos>", **named)
    image_processor = Gemma3ImageProcessorPil(size={"height": _tiny.SIDE, "width": _tiny.SIDE})
    processor = Gemma3Processor(image_processor, tokenizer, chat_template=TEMPLATE, image_seq_length=4)
    text = _tiny.text_sizes(tokenizer) | {
        "head_dim": 8,
        # Small compared with the blocks' outputs; otherwise the tied output head would repeat the last token.
        "initializer_range": 0.05,
        "query_pre_attn_scalar": 8,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"],
    }
    config = Gemma3Config(
        vision_config=SiglipVisionConfig(**_tiny.vision_sizes(), vision_use_head=False),
        text_config=Gemma3TextConfig(**text),
        mm_tokens_per_image=4,
        boi_token_index=tokenizer.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_index=tokenizer.convert_tokens_to_ids("<end_of_image>"),
        image_token_index=tokenizer.convert_tokens_to_ids("<image_soft_token>"),
    )

    def make() -> Gemma3ForConditionalGeneration:
        model = Gemma3ForConditionalGeneration(config)
        # Initialised to zero, which would make all images equal.
        torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.3)
        return model

    return _tiny.write(folder, make, processor, seed=seed)
