"""Which batches can be decoded with fixed shapes: what their model is, what generation asks for, what a step is given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from transformers.cache_utils import DynamicCache
from transformers.generation.logits_process import MinLengthLogitsProcessor, MinNewTokensLengthLogitsProcessor
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria

from dmole_cli.backbones.backbone import Backbone
from dmole_cli.backbones.device import is_divided
from dmole_cli.inference.decoding_step import REPEATED, Limits
from dmole_cli.inference.static_cache import is_plain

# What a step does itself; `generate` turns a minimum of new tokens into both of the processors.
RULES = {MinLengthLogitsProcessor, MinNewTokensLengthLogitsProcessor, MaxLengthCriteria, EosTokenCriteria}
# Arguments of the model that a step passes in tensors of its own.
GIVEN = {"input_ids", "attention_mask", "position_ids", "past_key_values", "return_dict", *REPEATED}


def limits_of(logits_processor: Any, stopping_criteria: Any, config: Any, prompt: int) -> Limits | None:
    """What generation asks for; None if it is more than the likeliest token, a minimum and a maximum number, and end tokens.

    Args:
        logits_processor: those that `generate` of transformers has prepared, as are the following.
        stopping_criteria: when an answer ends.
        config: generation config.
        prompt: length of the prompts.
    """
    if {type(rule) for rule in [*logits_processor, *stopping_criteria]} - RULES:
        return None
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    if config.max_length is None or config.pad_token_id is None or None in ends:
        return None
    shortest = max(config.min_new_tokens or 0, (config.min_length or 0) - prompt)
    return Limits(tuple(ends), int(config.pad_token_id), shortest, config.max_length - prompt)


def is_suitable(backbone: Backbone) -> bool:
    """Whether a backbone may decode with fixed shapes: it is on one device, with plain weights and attention of torch."""
    model = backbone.model
    attention = getattr(model.config.get_text_config(), "_attn_implementation", None)
    quantised = getattr(model, "hf_quantizer", None) is not None
    return not is_divided(model) and not quantised and attention in ("sdpa", "eager")


def attends_to_all(model: Any) -> bool:
    """Whether all layers of the language model attend to all tokens before, without windows or chunks."""
    config = model.config.get_text_config(decoder=True)
    kinds = getattr(config, "layer_types", None)
    windows = (getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
    return set(kinds) == {"full_attention"} if kinds else not any(windows)


def is_fixed(first: Mapping[str, Any]) -> bool:
    """Whether a step's arguments are known tensors and constants, and the cache has only the states of attention."""
    cache, mask = first.get("past_key_values"), first.get("attention_mask")
    if type(cache) is not DynamicCache or first["input_ids"].shape[1] != 1:
        return False
    length = cache.get_seq_length()
    # Without a mask, a batch has no padding.
    masked = mask is None or (isinstance(mask, torch.Tensor) and mask.shape == (len(first["input_ids"]), length + 1))
    return (
        masked
        and is_plain(cache, length)
        and all(name in GIVEN or isinstance(value, bool | int | float | str) for name, value in first.items())
    )


def description(first: Mapping[str, Any]) -> list[Any]:
    """What a step's arguments have in common for all batches of one model: dtypes and dimensions, and constants."""
    return [
        (name, (value.dtype, value.dim()) if isinstance(value, torch.Tensor) else value)
        for name, value in sorted(first.items())
        if name not in ("attention_mask", "past_key_values")
    ]


@contextmanager
def original_positions(model: Any, length: int) -> Iterator[None]:
    """Inside the block, rotary positions that are rescaled for long sequences do not look at the positions of short ones.

    Args:
        model: with any rotary positions.
        length: of the cache; longer ones than the model was made for are left to the model.
    """
    changed = []
    for module in model.modules():
        kind = getattr(module, "rope_type", None)
        if not isinstance(kind, str) or "dynamic" not in kind or length > module.original_max_seq_len:
            continue
        if module.max_seq_len_cached == module.original_max_seq_len:
            changed.append((module, kind))
    for module, _ in changed:
        module.rope_type = "default"
    try:
        yield
    finally:
        for module, kind in changed:
            module.rope_type = kind
