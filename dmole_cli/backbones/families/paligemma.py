"""PaliGemma: no chat; pictures and the instruction are read in both directions, the answer behind them in one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

ANSWER_KIND = 1  # 0 is what all tokens see in both directions


def prompt(processor: Any, question: str, images: int) -> str:
    """The bare instruction behind its pictures; the processor puts the start token between them."""
    return processor.image_token * images + question


def prepare(processor: Any, text: str, pictures: Sequence[Image]) -> Mapping[str, torch.Tensor]:
    """The processor's inputs without its labels, which know no answer here; it takes no text without a picture."""
    if pictures:
        inputs = processor(text=[text], images=[list(pictures)], return_tensors="pt", add_special_tokens=False)
        inputs.pop("labels", None)
        return inputs
    words = processor.tokenizer
    return words(
        [f"{words.bos_token}{text}\n"], return_tensors="pt", add_special_tokens=False, return_token_type_ids=True
    )


def read(tower: Any, tokens: torch.Tensor) -> torch.Tensor:
    """An instruction is read in both directions, which the language model alone does not know.

    Without a mask it would do so or not, depending on how attention is computed.
    """
    rows, length = tokens.shape
    nothing = next(tower.parameters()).new_zeros(rows, 1, length, length)
    slides = getattr(tower.config, "sliding_window", None) is not None  # PaliGemma 2
    mask = {"full_attention": nothing, "sliding_attention": nothing} if slides else nothing
    return tower(input_ids=tokens, attention_mask=mask, use_cache=False).last_hidden_state


def tiny(folder: Path, *, seed: int = 0) -> Path:
    """Write the family made tiny: 24 × 24 pictures of 4 tokens."""
    from transformers import (
        GemmaConfig,
        PaliGemmaConfig,
        PaliGemmaForConditionalGeneration,
        PaliGemmaProcessor,
        SiglipImageProcessorPil,
        SiglipVisionConfig,
    )

    from dmole_cli.backbones.families import _tiny

    words = _tiny.tokenizer(start="<bos>", image_token="<image>")
    pictures: Any = SiglipImageProcessorPil(size={"height": _tiny.SIDE, "width": _tiny.SIDE})
    pictures.image_seq_length = 4
    processor = PaliGemmaProcessor(pictures, words)
    text = _tiny.text_sizes(words) | {"vocab_size": len(processor.tokenizer), "head_dim": 8}
    config = PaliGemmaConfig(
        vision_config=SiglipVisionConfig(**_tiny.vision_sizes(patch=12), vision_use_head=False),
        text_config=GemmaConfig(**text),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        projection_dim=_tiny.WIDTH,
        hidden_size=_tiny.WIDTH,
    )
    return _tiny.write(folder, lambda: PaliGemmaForConditionalGeneration(config), processor, seed=seed)
