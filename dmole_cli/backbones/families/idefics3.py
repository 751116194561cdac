"""Idefics3: an image becomes tiles, then the whole image; samples with fewer images are padded with empty ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from dmole_cli.backbones.families._tiles import global_images
from dmole_cli.backbones.families.base import Family
from dmole_cli.backbones.image_layouts import View
from dmole_cli.backbones.vllm_lora import VllmLora

MARKS = ("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>")
TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'].capitalize() }}:"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>{% else %} {{ part['text'] }}{% endif %}"
    "{% endfor %}<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)


class Idefics3(Family):
    """A special token marks the tile that shows the whole image."""

    # https://docs.vllm.ai/en/latest/api/vllm/model_executor/models/idefics3/: names as here, supports_tower_connector_lora.
    vllm = VllmLora({path: path for path in ("model.text_model.layers.", "model.vision_model.encoder.layers.")})

    def whole_images(self, vision: Mapping[str, torch.Tensor], tokens: torch.Tensor, *, images: int) -> list[View]:
        """The tile behind the marker of a whole image."""
        return global_images(vision, tokens, self.processor, marker=self.processor.global_image_tag)


def tiny(folder: Path, *, seed: int = 0) -> Path:
    """Write a tiny model: 24 × 24 tiles of 4 tokens, two or four per image and the whole image."""
    from transformers import (
        Idefics3Config,
        Idefics3ForConditionalGeneration,
        Idefics3ImageProcessorPil,
        Idefics3Processor,
        LlamaConfig,
    )

    from dmole_cli.backbones.families import _tiny

    grid = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    tokenizer = _tiny.tokenizer(*MARKS, *grid, end="<end_of_utterance>", start="<|im_start|>")
    image_processor = Idefics3ImageProcessorPil(
        size={"longest_edge": 2 * _tiny.SIDE}, max_image_size={"longest_edge": _tiny.SIDE}
    )
    processor = Idefics3Processor(image_processor, tokenizer, image_seq_len=4, chat_template=TEMPLATE)
    config = Idefics3Config(
        vision_config=_tiny.vision_sizes(),
        text_config=LlamaConfig(**_tiny.text_sizes(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    return _tiny.write(folder, lambda: Idefics3ForConditionalGeneration(config), processor, seed=seed)
