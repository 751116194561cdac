"""PaliGemma: no chat template; images and instruction attend in both directions, the answer causally."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image

from dmole_cli.backbones.families.base import Family
from dmole_cli.backbones.vllm_lora import VllmLora


class PaliGemma(Family):
    """Prefix language model: `token_type_ids` are 0 in the bidirectional prefix and 1 in the answer."""

    answer_token_type = 1
    # It had LoRA on both towers (https://github.com/vllm-project/vllm/pull/31656) before a flag was needed for it
    # (https://github.com/vllm-project/vllm/pull/53092); whether its class has the flag was not found out.
    vllm = VllmLora(refused="it has not been established whether vLLM still adapts the vision encoder of PaliGemma")

    def prompt(self, question: str, *, images: int) -> str:
        """The bare instruction behind its image tokens; the processor puts the start token between them."""
        return self.processor.image_token * images + question

    def prepare(self, text: str, images: Sequence[Image]) -> Mapping[str, torch.Tensor]:
        """The processor's inputs without its labels, which lack the answer; text without images needs the tokenizer alone."""
        if images:
            inputs = self.processor(text=[text], images=[list(images)], return_tensors="pt", add_special_tokens=False)
            inputs.pop("labels", None)
            return inputs
        tokenizer = self.processor.tokenizer
        return tokenizer(
            [f"{tokenizer.bos_token}{text}\n"],
            return_tensors="pt",
            add_special_tokens=False,
            return_token_type_ids=True,
        )

    def language_states(self, tower: Any, tokens: torch.Tensor) -> torch.Tensor:
        """Bidirectional attention over the instruction, by an explicit mask.

        Without one, the result would depend on the attention implementation.
        """
        rows, length = tokens.shape
        unmasked = next(tower.parameters()).new_zeros(rows, 1, length, length)
        sliding = getattr(tower.config, "sliding_window", None) is not None  # PaliGemma 2
        mask = {"full_attention": unmasked, "sliding_attention": unmasked} if sliding else unmasked
        return tower(input_ids=tokens, attention_mask=mask, use_cache=False).last_hidden_state


def tiny(folder: Path, *, seed: int = 0) -> Path:
    """Write a tiny model: 24 × 24 images of 4 tokens."""
    from transformers import (
        GemmaConfig,
        PaliGemmaConfig,
        PaliGemmaForConditionalGeneration,
        PaliGemmaProcessor,
        SiglipImageProcessorPil,
        SiglipVisionConfig,
    )

    from dmole_cli.backbones.families import _tiny

    tokenizer = _tiny.tokenizer(start="<bos>", image_token="<image>")
    image_processor: Any = SiglipImageProcessorPil(size={"height": _tiny.SIDE, "width": _tiny.SIDE})
    image_processor.image_seq_length = 4
    processor = PaliGemmaProcessor(image_processor, tokenizer)
    text = _tiny.text_sizes(tokenizer) | {"vocab_size": len(processor.tokenizer), "head_dim": 8}
    config = PaliGemmaConfig(
        vision_config=SiglipVisionConfig(**_tiny.vision_sizes(patch=12), vision_use_head=False),
        text_config=GemmaConfig(**text),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        projection_dim=_tiny.WIDTH,
        hidden_size=_tiny.WIDTH,
    )
    return _tiny.write(folder, lambda: PaliGemmaForConditionalGeneration(config), processor, seed=seed)
