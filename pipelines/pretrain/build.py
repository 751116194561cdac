"""Tokenizer, processor and randomly initialized LLaVA model of the embedded backbone, all of standard classes."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from scenes import PATCH
from shapes import SIDE
from transformers import (
    CLIPImageProcessorPil,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)

VOCABULARY = 1500
SPECIAL = ("<pad>", "<end>", "<user>", "<assistant>", "<image>")
TEMPLATE = (
    "{% for message in messages %}{{ '<' + message['role'] + '>' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endif %}{% if message['role'] == 'assistant' %}<end>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def train_tokenizer(lines: Iterable[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE with a token per coordinate of a box (`[140`, `, 360`) and a token per digit elsewhere."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    pieces = Regex(r"\[\d+|, \d+|\d| ?\p{L}+|\s+(?!\S)|\s| ?[^\s\p{L}\d]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pieces, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<end>",
        additional_special_tokens=["<user>", "<assistant>", "<image>"],
        model_max_length=512,
        padding_side="left",
    )


def build_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """Images are resized to SIDE x SIDE and scaled to -1..1; an `<image>` token expands to (SIDE / PATCH)^2 tokens."""
    size = {"height": SIDE, "width": SIDE}
    images = CLIPImageProcessorPil(
        size=size, crop_size=size, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3, do_convert_rgb=True
    )
    return LlavaProcessor(
        images,
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        chat_template=TEMPLATE,
        image_token="<image>",
    )


def build_model(tokenizer: PreTrainedTokenizerFast, *, seed: int) -> LlavaForConditionalGeneration:
    """A SigLIP-style vision transformer (6 x 128), a two-layer projector and a Llama-style decoder (5 x 192)."""
    torch.manual_seed(seed)
    vision = SiglipVisionConfig(
        hidden_size=128, intermediate_size=384, num_hidden_layers=6, num_attention_heads=4, image_size=SIDE, patch_size=PATCH,
        vision_use_head=False,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=192, intermediate_size=512, num_hidden_layers=5, num_attention_heads=6,
        num_key_value_heads=6, max_position_embeddings=1024, tie_word_embeddings=True, initializer_range=0.05,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_select_strategy="full", vision_feature_layer=-1, image_seq_length=(SIDE // PATCH) ** 2,
        tie_word_embeddings=True,
    )  # fmt: skip
    return LlavaForConditionalGeneration(config)
