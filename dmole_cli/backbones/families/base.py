"""What a family is: a file named after a `model_type` of transformers; the folder's listing is the registry.

The adapter asks model, configuration and processor for everything. Where their answer is not enough for a family, its file
defines some of these, and nothing else:

- `tiny(folder, seed=0)`: writes the family made tiny, model and processor (the one thing without a default: tests run on it);
- `prompt(processor, question, images)`: a user's turn as text, with what stands for its pictures, up to where the answer
  begins (the chat template's);
- `prepare(processor, text, pictures)`: the model's inputs of one sample, tokens [1, length] (the processor's);
- `ANSWER_KIND = 0`: what an answer's tokens are where the inputs say a kind of every token, as `token_type_ids` do;
- `picture_tokens(processor, sizes, pictures)`: tokens of pictures (height, width) of samples that have so many of them,
  without opening one (the processor's count);
- `vision_rows(vision)`: how many rows of the vision encoder's tensors a sample's pictures become (see layouts.py);
- `whole_pictures(vision, tokens, processor, pictures)`: what the vision encoder takes of each picture as a whole, where a
  picture becomes tiles (see layouts.py);
- `last_hidden_state(tower, views)`: [pictures, tokens, width] of such whole pictures, stacked (see layouts.py);
- `read(tower, tokens)`: the language model's last hidden state [instructions, tokens, width] of instructions of one length
  [instructions, tokens], nothing before and nothing behind them (the tower's).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from dmole_cli.backbones import image_layouts as layouts

FOLDER = Path(__file__).parent


def families() -> list[str]:
    """Model types that have a file here, sorted."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return sorted(path.stem for path in FOLDER.glob("*.py") if path.stem in CONFIG_MAPPING_NAMES)


def prompt(processor: Any, question: str, images: int) -> str:
    """The chat template's text for one user turn."""
    content = [*({"type": "image"} for _ in range(images)), {"type": "text", "text": question}]
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


def prepare(processor: Any, text: str, pictures: Sequence[Image.Image]) -> Mapping[str, torch.Tensor]:
    """The processor's inputs of one text with its pictures; a start token is added unless the text has it."""
    start = processor.tokenizer.bos_token
    arguments = {"images": [list(pictures)]} if pictures else {}
    special = start is not None and not text.startswith(start)
    return processor(text=[text], return_tensors="pt", add_special_tokens=special, **arguments)


def picture_tokens(processor: Any, sizes: Sequence[tuple[int, int]], pictures: int) -> Sequence[int]:
    """Tokens of pictures of these sizes (height, width), as the processor counts them."""
    return processor._get_num_multimodal_tokens(image_sizes=sizes)["num_image_tokens"]


def whole_pictures(
    vision: Mapping[str, torch.Tensor], tokens: torch.Tensor, processor: Any, pictures: int
) -> list[layouts.View]:
    """What the vision encoder takes of each picture as a whole."""
    return layouts.whole_pictures(vision, tokens, pictures=pictures)


def read(tower: Any, tokens: torch.Tensor) -> torch.Tensor:
    """The language model's last hidden state of instructions alone."""
    return tower(input_ids=tokens, use_cache=False).last_hidden_state


@dataclass(frozen=True)
class Family:
    """The functions above, a family's own where it has them."""

    prompt: Callable[[Any, str, int], str] = prompt
    prepare: Callable[[Any, str, Sequence[Image.Image]], Mapping[str, torch.Tensor]] = prepare
    ANSWER_KIND: int = 0
    picture_tokens: Callable[[Any, Sequence[tuple[int, int]], int], Sequence[int]] = picture_tokens
    vision_rows: Callable[[Mapping[str, torch.Tensor]], int] = layouts.vision_rows
    whole_pictures: Callable[[Mapping[str, torch.Tensor], torch.Tensor, Any, int], list[layouts.View]] = whole_pictures
    last_hidden_state: Callable[[Any, Mapping[str, torch.Tensor]], torch.Tensor] = layouts.last_hidden_state
    read: Callable[[Any, torch.Tensor], torch.Tensor] = read


def family_of(model_type: str) -> Family:
    """The family of a model type; one without a file has all the defaults."""
    if model_type not in families():
        return Family()
    module = importlib.import_module(f"dmole_cli.backbones.families.{model_type}")
    return Family(**{f.name: getattr(module, f.name) for f in fields(Family) if hasattr(module, f.name)})
