"""SmolVLM: an image becomes tiles, then the whole image; samples with fewer images are padded with empty ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dmole_cli.backbones.families._tiles import global_images
from dmole_cli.backbones.families.base import Family
from dmole_cli.backbones.image_layouts import View
from dmole_cli.backbones.vllm_lora import VllmLora

MARKS = ("<end_of_utterance>", "<global-img>")
TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'].capitalize() }}"
    "{% if message['content'][0]['type'] == 'image' %}:{% else %}: {% endif %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)


class SmolVLM(Family):
    """As Idefics3; its processor does not count image tokens."""

    # vLLM's class is a subclass of that of Idefics3:
    # https://github.com/vllm-project/vllm/blob/main/vllm/model_executor/models/smolvlm.py
    vllm = VllmLora({path: path for path in ("model.text_model.layers.", "model.vision_model.encoder.layers.")})

    def whole_images(self, vision: Mapping[str, torch.Tensor], tokens: torch.Tensor, *, images: int) -> list[View]:
        """The tile behind the marker of a whole image."""
        return global_images(vision, tokens, self.processor, marker=self.processor.global_image_token)

    def image_tokens(self, sizes: Sequence[tuple[int, int]], *, images: int) -> Sequence[int]:
        """Tokens of all tiles with the special tokens and line breaks between them, as the processor writes them."""
        return [self._tokens_of(size) for size in sizes]

    def _tokens_of(self, size: tuple[int, int]) -> int:
        _, rows, columns = self.processor.image_processor.get_number_of_image_patches(*size)
        text = self.processor.replace_image_token({"rows": [[rows]], "cols": [[columns]]}, 0)
        return len(self.processor.tokenizer(text, add_special_tokens=False)["input_ids"])


def tiny(folder: Path, *, seed: int = 0) -> Path:
    """Write a tiny model: 24 × 24 tiles of 4 tokens, two or four per image and the whole image."""
    from transformers import (
        LlamaConfig,
        SmolVLMConfig,
        SmolVLMForConditionalGeneration,
        SmolVLMImageProcessorPil,
        SmolVLMProcessor,
    )

    from dmole_cli.backbones.families import _tiny
    from dmole_cli.backbones.processors import without_video

    grid = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    named = {"fake_image_token": "<fake_token_around_image>", "image_token": "<image>"}
    tokenizer = _tiny.tokenizer(*MARKS, *grid, end="<end_of_utterance>", start="<|im_start|>", **named)
    sizes: dict[str, Any] = {"size": {"longest_edge": 2 * _tiny.SIDE}, "max_image_size": {"longest_edge": _tiny.SIDE}}
    image_processor = SmolVLMImageProcessorPil(**sizes)
    processor = without_video(SmolVLMProcessor)(
        image_processor, tokenizer, None, image_seq_len=4, chat_template=TEMPLATE
    )
    config = SmolVLMConfig(
        vision_config=_tiny.vision_sizes(),
        text_config=LlamaConfig(**_tiny.text_sizes(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    sampling = {"video_sampling": {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": 2 * _tiny.SIDE}}}
    video = {"video_processor_type": "SmolVLMVideoProcessor", **sizes, **sampling}
    return _tiny.write(folder, lambda: SmolVLMForConditionalGeneration(config), processor, seed=seed, video=video)
