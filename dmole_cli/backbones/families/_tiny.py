"""Shared by the families' tiny models: a byte-level tokenizer, configuration sizes, and saving.

A tiny model has the family's own classes and processor, written by `save_pretrained`, with random weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dmole_cli.backbones.processors import VIDEO

SIDE, PATCH = 24, 6  # pixels per side of an image or tile, and of a patch
WIDTH, INNER = 32, 48  # hidden size, and intermediate size of the MLPs
MEAN = STD = [0.5] * 3
# Qwen's template: a default system prompt, and roles between markers. IMAGE stands for the family's image tokens.
CHAT = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}IMAGE"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHAT_MARKS = ("<|im_start|>", "<|im_end|>")


def tokenizer(*marks: str, end: str = "<eos>", start: str | None = None, **named: str) -> Any:
    """A byte-level tokenizer with special tokens.

    Args:
        marks: special tokens.
        end: end-of-sequence token; may be one of the marks.
        start: beginning-of-sequence token, if the family has one.
        named: tokenizer attribute -> special token, for processors that read it by name.
    """
    special = list(dict.fromkeys(["<pad>", end, *([start] if start else []), *marks, *named.values()]))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    parts = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate([*special, *alphabet])}, merges=[]))
    parts.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    parts.decoder = decoders.ByteLevel()
    parts.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=parts,
        pad_token="<pad>",
        eos_token=end,
        bos_token=start,
        **({"extra_special_tokens": named} if named else {}),
    )


def text_sizes(tokenizer: Any) -> dict[str, Any]:
    """Arguments of a language model's configuration, under the names that most families use."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        # Large enough that answers depend on the image and the experts, which the routing tests rely on.
        "initializer_range": 0.3,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
    }


def vision_sizes(*, patch: int = PATCH) -> dict[str, Any]:
    """Arguments of a vision encoder's configuration, under the names that most families use."""
    return {
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": patch,
        "initializer_range": 0.1,
    }


def write(
    folder: Path, make: Callable[[], Any], processor: Any, *, seed: int, video: Mapping[str, Any] | None = None
) -> Path:
    """Write a model and its processor with `save_pretrained`.

    Args:
        folder: destination.
        make: builds the model.
        processor: the family's processor; one without its video processor (see `processors.without_video`) needs `video`.
        seed: seed of the weights.
        video: settings of the video processor, which the full processor would have written.

    Returns:
        The folder.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    if video is not None:
        file = folder / "processor_config.json"
        settings = {**json.loads(file.read_text(encoding="utf-8")), VIDEO: dict(video)}
        file.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return folder
