"""SmolVLM: a picture becomes tiles and the whole of it behind them; samples with fewer are padded with empty pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmole_cli.backbones.families._splitting import global_pictures, split_tokens

if TYPE_CHECKING:
    import torch

    from dmole_cli.backbones.image_layouts import View

MARKS = ("<end_of_utterance>", "<global-img>")
TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'].capitalize() }}"
    "{% if message['content'][0]['type'] == 'image' %}:{% else %}: {% endif %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)


def whole_pictures(
    vision: Mapping[str, torch.Tensor], tokens: torch.Tensor, processor: Any, pictures: int
) -> list[View]:
    """The tile behind the mark of the global picture."""
    return global_pictures(vision, tokens, processor, mark=processor.global_image_token)


def picture_tokens(processor: Any, sizes: Sequence[tuple[int, int]], pictures: int) -> list[int]:
    """Tokens of all tiles with the marks between them, as the processor writes them."""
    return [split_tokens(processor, size) for size in sizes]


def tiny(folder: Path, *, seed: int = 0) -> Path:
    """Write the family made tiny: 24 × 24 tiles of 4 tokens, two or four and the whole picture."""
    from transformers import (
        LlamaConfig,
        SmolVLMConfig,
        SmolVLMForConditionalGeneration,
        SmolVLMImageProcessorPil,
        SmolVLMProcessor,
    )

    from dmole_cli.backbones.families import _tiny
    from dmole_cli.backbones.processors import for_pictures

    grid = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    named = {"fake_image_token": "<fake_token_around_image>", "image_token": "<image>"}
    words = _tiny.tokenizer(*MARKS, *grid, end="<end_of_utterance>", start="<|im_start|>", **named)
    sizes: dict[str, Any] = {"size": {"longest_edge": 2 * _tiny.SIDE}, "max_image_size": {"longest_edge": _tiny.SIDE}}
    pictures = SmolVLMImageProcessorPil(**sizes)
    processor = for_pictures(SmolVLMProcessor)(pictures, words, None, image_seq_len=4, chat_template=TEMPLATE)
    config = SmolVLMConfig(
        vision_config=_tiny.vision_sizes(),
        text_config=LlamaConfig(**_tiny.text_sizes(words)),
        image_token_id=words.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    sampling = {"video_sampling": {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": 2 * _tiny.SIDE}}}
    video = {"video_processor_type": "SmolVLMVideoProcessor", **sizes, **sampling}
    return _tiny.write(folder, lambda: SmolVLMForConditionalGeneration(config), processor, seed=seed, video=video)
