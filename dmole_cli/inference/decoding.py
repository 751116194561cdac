"""Greedy decoding in which a row that has ended leaves the batch, instead of being computed until the longest one ends.

`generate` of transformers prepares everything (cache, positions, logits processors, stopping criteria) and calls this loop in
place of its own, through its argument `custom_generate`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from dmole_cli.backbones.backbone import Backbone

Leave = Callable[[torch.Tensor], None]
BATCH_FIRST = ("attention_mask", "token_type_ids", "mm_token_type_ids")


def dropping_finished_rows(leave: Leave | None, counts: Counter[str]) -> Callable[..., torch.Tensor]:
    """Make a decoding loop for `generate(custom_generate=...)`.

    Args:
        leave: told the indices [left] of the rows that go on, whenever some end; what else knows the batch follows.
        counts: gets `decode_rows`, the rows of all forward passes, and `decode_rows_needed`, the tokens that were wanted.
    """

    def decode(
        model: Any,
        input_ids: torch.Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        **kwargs,
    ) -> torch.Tensor:
        everyone, prompt = len(input_ids), input_ids.shape[1]
        rows = torch.arange(everyone, device=input_ids.device)
        ended: dict[int, torch.Tensor] = {}
        first = True
        while len(rows):
            inputs = model.prepare_inputs_for_generation(
                input_ids, next_sequence_length=None if first else 1, is_first_iteration=first, **kwargs
            )
            outputs = model(**inputs, return_dict=True)
            kwargs = model._update_model_kwargs_for_generation(outputs, kwargs)
            scores = logits_processor(input_ids, outputs.logits[:, -1].float())
            input_ids = torch.cat([input_ids, scores.argmax(dim=-1, keepdim=True)], dim=1)
            done = stopping_criteria(input_ids, None)
            counts["decode_rows"] += len(rows)
            first = False
            if not done.any():
                continue
            ended |= {row: tokens[prompt:] for row, tokens in zip(rows[done].tolist(), input_ids[done], strict=True)}
            going = (~done).nonzero()[:, 0]
            rows, input_ids = rows[going], input_ids[going]
            kwargs = {name: select_rows(name, value, going, len(done)) for name, value in kwargs.items()}
            if leave is not None and len(going):
                leave(going)
        counts["decode_rows_needed"] += sum(len(tokens) for tokens in ended.values())
        return _padded([ended[row] for row in range(everyone)], int(generation_config.pad_token_id))

    return decode


def select_rows(name: str, value: Any, rows: torch.Tensor, before: int) -> Any:
    """These rows [indices] of a model input that has `before` of them; a cache is narrowed in place."""
    if name == "past_key_values":
        value.batch_select_indices(rows)
    elif name in BATCH_FIRST and value is not None:
        return value[rows]
    elif name == "position_ids" and value is not None and value.shape[-2] == before:
        # [rows, tokens], or [axes, rows, tokens] where positions have several axes
        return value.index_select(-2, rows)
    return value


def _padded(rows: list[torch.Tensor], value: int) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)


@torch.no_grad()
def generate(
    backbone: Backbone,
    inputs: dict[str, torch.Tensor],
    *,
    max_new_tokens: int,
    min_new_tokens: int,
    leave: Leave | None = None,
) -> list[str]:
    """Greedy answers of a left-padded batch, without special tokens and outer white space.

    Args:
        inputs: of `collate`.
        max_new_tokens: at most.
        min_new_tokens: at least, 0 for none.
        leave: told which rows go on whenever some end and leave the batch (`RoutedExperts.keep`).
    """
    backbone.counts["generations"] += len(inputs["input_ids"])
    with backbone.autocast():
        new = backbone.model.generate(
            **{k: v for k, v in inputs.items() if k != "labels"},
            max_new_tokens=max_new_tokens,
            min_new_tokens=min_new_tokens or None,
            do_sample=False,
            num_beams=1,
            pad_token_id=backbone.inputs.pad_token_id,
            eos_token_id=backbone.ends,
            custom_generate=dropping_finished_rows(leave, backbone.counts),
        )
    return [text.strip() for text in backbone.tokenizer.batch_decode(new, skip_special_tokens=True)]
