"""Idefics3: a picture becomes tiles and the whole of it behind them; samples with fewer are padded with empty pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmole_cli.backbones.families._splitting import global_pictures

if TYPE_CHECKING:
    import torch

    from dmole_cli.backbones.image_layouts import View

MARKS = ("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>")
TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'].capitalize() }}:"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>{% else %} {{ part['text'] }}{% endif %}"
    "{% endfor %}<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)


def whole_pictures(
    vision: Mapping[str, torch.Tensor], tokens: torch.Tensor, processor: Any, pictures: int
) -> list[View]:
    """The tile behind the mark of the global picture."""
    return global_pictures(vision, tokens, processor, mark=processor.global_image_tag)


def tiny(folder: Path, *, seed: int = 0) -> Path:
    """Write the family made tiny: 24 × 24 tiles of 4 tokens, two or four and the whole picture."""
    from transformers import (
        Idefics3Config,
        Idefics3ForConditionalGeneration,
        Idefics3ImageProcessorPil,
        Idefics3Processor,
        LlamaConfig,
    )

    from dmole_cli.backbones.families import _tiny

    grid = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    words = _tiny.tokenizer(*MARKS, *grid, end="<end_of_utterance>", start="<|im_start|>")
    pictures = Idefics3ImageProcessorPil(
        size={"longest_edge": 2 * _tiny.SIDE}, max_image_size={"longest_edge": _tiny.SIDE}
    )
    processor = Idefics3Processor(pictures, words, image_seq_len=4, chat_template=TEMPLATE)
    config = Idefics3Config(
        vision_config=_tiny.vision_sizes(),
        text_config=LlamaConfig(**_tiny.text_sizes(words)),
        image_token_id=words.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    return _tiny.write(folder, lambda: Idefics3ForConditionalGeneration(config), processor, seed=seed)
