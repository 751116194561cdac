"""What the families' tiny models have in common: a tokenizer with a token a byte, saving, sizes.

A tiny model is the real thing: the family's own classes and processor, written by `save_pretrained`, with random weights.
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

SIDE, PATCH = 24, 6  # pixels of a picture or tile, and of a patch of it
WIDTH, INNER = 32, 48  # entries of a hidden state, and within a block's MLP
MEAN = STD = [0.5] * 3
# As Qwen's: a system prompt where none is given, and roles between markers.
CHAT = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}PICTURE"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHAT_MARKS = ("<|im_start|>", "<|im_end|>")


def tokenizer(*marks: str, end: str = "<eos>", start: str | None = None, **named: str) -> Any:
    """A tokenizer with a token a byte and these special tokens.

    Args:
        marks: special tokens.
        end: the one that ends an answer; among the marks or not.
        start: the one that a text begins with, if there is one.
        named: attribute of the tokenizer -> special token, for processors that ask for it by name.
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


def text_sizes(words: Any) -> dict[str, Any]:
    """Configuration of a language model for a tokenizer, as most families name it."""
    return {
        "vocab_size": len(words),
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        # Wide enough that answers differ from one picture and one expert to the next, which tests of routing live on.
        "initializer_range": 0.3,
        "pad_token_id": words.pad_token_id,
        "eos_token_id": words.eos_token_id,
        "bos_token_id": words.bos_token_id,
    }


def vision_sizes(*, patch: int = PATCH) -> dict[str, Any]:
    """Configuration of a vision encoder, as most families name it."""
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
    """Write a model and its processor as `save_pretrained` does.

    Args:
        folder: where.
        make: builds the model.
        processor: of the family; where it is one for pictures alone (see `processors.for_pictures`), `video` is due.
        seed: of the weights.
        video: what the whole processor would have written about its part for videos.
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
