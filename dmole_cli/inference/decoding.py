"""Greedy decoding that drops finished rows from the batch, instead of computing them until the longest answer ends.

`generate` of transformers prepares everything (cache, positions, logits processors, stopping criteria) and calls this loop
instead of its own, by its argument `custom_generate`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from dmole_cli.backbones.backbone import Backbone
from dmole_cli.errors import DmoleError
from dmole_cli.inference.fixed_inputs import limits_of
from dmole_cli.inference.static_decoding import StaticDecoder

Leave = Callable[[torch.Tensor], None]
# (rows of the batch, the next token of each)
Emit = Callable[[list[int], list[int]], None]
BATCH_FIRST = ("attention_mask", "token_type_ids", "mm_token_type_ids", "cross_attention_mask")


class Lengths:
    """Numbers of tokens of the rows of a batch, where `generate` of transformers has one for all.

    Args:
        longest: maximum number of tokens of each row.
        shortest: minimum number of tokens of each row.
        ends: tokens that end an answer.
        device: of the batch.
    """

    def __init__(
        self, longest: Sequence[int], shortest: Sequence[int], ends: Sequence[int], device: torch.device
    ) -> None:
        self.longest, self.shortest, self.ends = (
            torch.tensor(values, device=device) for values in (longest, shortest, ends)
        )

    def without_ends(self, scores: torch.Tensor, rows: torch.Tensor, count: int) -> torch.Tensor:
        """Scores [rows, vocabulary] of the next token, without end tokens where an answer of `count` tokens is too short."""
        short = (count < self.shortest[rows])[:, None]
        return torch.where(short, scores.index_fill(1, self.ends, -torch.inf), scores)

    def reached(self, rows: torch.Tensor, count: int) -> torch.Tensor:
        """Which rows [rows] have their maximum number of tokens."""
        return count >= self.longest[rows]


def dropping_finished_rows(
    leave: Leave | None,
    counts: Counter[str],
    decoder: StaticDecoder | None = None,
    *,
    lengths: Lengths | None = None,
    emit: Emit | None = None,
) -> Callable[..., torch.Tensor]:
    """Make a decoding loop for `generate(custom_generate=...)`.

    Args:
        leave: as for `generate_tokens`, as is `emit`.
        counts: `decode_rows` is increased by the rows of all forward passes, `decode_rows_needed` by the generated tokens.
        decoder: computes all tokens but the first ones with fixed shapes, where it can.
        lengths: of each row; None where `generate` has the same for all.
    """

    def decode(
        model: Any,
        input_ids: torch.Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        **kwargs,
    ) -> torch.Tensor:
        prompt, rows = input_ids.shape[1], torch.arange(len(input_ids), device=input_ids.device)
        finished: dict[int, torch.Tensor] = {}
        first = True
        undefined = torch.zeros((), dtype=torch.bool, device=input_ids.device)
        while len(rows):
            step = {"next_sequence_length": None if first else 1, "is_first_iteration": first}
            outputs = model(**model.prepare_inputs_for_generation(input_ids, **step, **kwargs), return_dict=True)
            kwargs = model._update_model_kwargs_for_generation(outputs, kwargs, is_encoder_decoder=False)
            scores, count = logits_processor(input_ids, outputs.logits[:, -1].float()), input_ids.shape[1] - prompt
            if lengths is not None:
                scores = lengths.without_ends(scores, rows, count)
            undefined |= scores.isnan().any()
            input_ids = torch.cat([input_ids, scores.argmax(dim=-1, keepdim=True)], dim=1)
            done = stopping_criteria(input_ids, None)
            done = done if lengths is None else done | lengths.reached(rows, count + 1)
            if emit is not None:
                _emit_defined(emit, rows, input_ids[:, -1], undefined)
            counts["decode_rows"] += len(rows)
            if first and decoder is not None:
                rules = (logits_processor, stopping_criteria, generation_config)
                answers = _with_fixed_shapes(decoder, model, input_ids, kwargs, rules, done, undefined)
                if answers is not None:
                    finished = dict(enumerate(answers))
                    break
            first = False
            if done.any():
                finished |= zip(rows[done].tolist(), input_ids[done, prompt:], strict=True)
                rows, input_ids, kwargs = _without(done, rows, input_ids, kwargs, leave)
        if undefined:  # read once: each read of a number waits for the device
            raise undefined_outputs()
        counts["decode_rows_needed"] += sum(len(tokens) for tokens in finished.values())
        answers = [finished[row] for row in sorted(finished)]
        return pad_sequence(answers, batch_first=True, padding_value=int(generation_config.pad_token_id))

    return decode


def _emit_defined(emit: Emit, rows: torch.Tensor, tokens: torch.Tensor, undefined: torch.Tensor) -> None:
    """Pass tokens on, unless they are those of logits that were NaN."""
    if undefined:
        raise undefined_outputs()
    emit(rows.tolist(), tokens.tolist())


def _without(
    done: torch.Tensor, rows: torch.Tensor, input_ids: torch.Tensor, kwargs: dict[str, Any], leave: Leave | None
) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    """Rows of the batch, their tokens and the model's arguments without the rows that are done."""
    remaining = (~done).nonzero()[:, 0]
    kwargs = {name: select_rows(name, value, remaining, len(done)) for name, value in kwargs.items()}
    if leave is not None and len(remaining):
        leave(remaining)
    return rows[remaining], input_ids[remaining], kwargs


def _with_fixed_shapes(
    decoder: StaticDecoder,
    model: Any,
    input_ids: torch.Tensor,
    kwargs: dict[str, Any],
    rules: tuple[Any, Any, Any],
    done: torch.Tensor,
    undefined: torch.Tensor,
) -> list[torch.Tensor] | None:
    """The answers of a batch with their end tokens, on the CPU; None if the decoder cannot decode it.

    Args:
        decoder: decodes.
        model: the backbone's model.
        input_ids: prompts and the first token of each answer.
        kwargs: of the model.
        rules: logits processors, stopping criteria and generation config.
        done: which answers the first token has ended.
        undefined: whether logits were NaN; is updated.
    """
    limits = limits_of(*rules, input_ids.shape[1] - 1)
    if limits is None:
        return None
    prepared = model.prepare_inputs_for_generation(
        input_ids, next_sequence_length=1, is_first_iteration=False, **kwargs
    )
    first = {name: value for name, value in prepared.items() if value is not None}
    tokens = decoder.decode(model, first, limits, done, undefined)
    if tokens is None:
        return None
    ended = torch.isin(tokens, torch.tensor(limits.ends))
    # The number of tokens up to the first end token, and this one.
    lengths = ended.int().argmax(dim=1).add(1).where(ended.any(dim=1), torch.tensor(tokens.shape[1]))
    return [row[:length] for row, length in zip(tokens, lengths.tolist(), strict=True)]


def undefined_outputs() -> DmoleError:
    """The error for logits with a NaN, whose largest entry would be a meaningless prediction."""
    return DmoleError(
        "the model's outputs are NaN; no prediction was stored",
        "train the active experts again with a lower learning rate; in float16 values may overflow: --dtype bfloat16 or float32",
    )


def select_rows(name: str, value: Any, rows: torch.Tensor, before: int) -> Any:
    """Select rows of a keyword argument of the model; the cache is narrowed in place, other arguments are returned.

    Args:
        name: name of the argument.
        value: its value for the whole batch.
        rows: indices of the selected rows.
        before: number of rows of the whole batch.
    """
    if name == "past_key_values":
        _select_cached(value, rows)
    elif name in BATCH_FIRST and value is not None:
        return value[rows]
    elif name == "position_ids" and value is not None and value.shape[-2] == before:
        # [rows, tokens], or [axes, rows, tokens] with multimodal rotary positions
        return value.index_select(-2, rows)
    return value


def _select_cached(cache: Any, rows: torch.Tensor) -> None:
    """Select rows of a cache in place.

    Layers of linear attention have no `batch_select_indices`, or one that leaves their recurrent state as it is; beam search's
    method selects all of their states.
    """
    for layer in cache.layers:
        # Of a model that is spread over devices, each layer's states are on its own.
        states = getattr(layer, "keys", None)
        rows = rows.to(states.device) if isinstance(states, torch.Tensor) else rows
        if hasattr(layer, "recurrent_states") or not hasattr(layer, "batch_select_indices"):
            layer.reorder_cache(rows)
        else:
            layer.batch_select_indices(rows)


def generate(
    backbone: Backbone,
    inputs: dict[str, torch.Tensor],
    *,
    max_new_tokens: int,
    min_new_tokens: int,
    leave: Leave | None = None,
    decoder: StaticDecoder | None = None,
) -> list[str]:
    """Greedy answers of a left-padded batch, without special tokens and surrounding white space.

    Args and errors are those of `generate_tokens`, with one maximum for all rows.
    """
    rows = len(inputs["input_ids"])
    longest, shortest = [max_new_tokens] * rows, [min_new_tokens] * rows
    tokens = generate_tokens(backbone, inputs, longest, shortest, leave=leave, decoder=decoder)
    return texts_of(backbone, tokens)


def texts_of(backbone: Backbone, answers: Sequence[Sequence[int]]) -> list[str]:
    """The texts of answers' tokens, without special tokens and surrounding white space."""
    return [text.strip() for text in backbone.tokenizer.batch_decode(answers, skip_special_tokens=True)]


@torch.no_grad()
def generate_tokens(
    backbone: Backbone,
    inputs: dict[str, torch.Tensor],
    longest: Sequence[int],
    shortest: Sequence[int],
    *,
    leave: Leave | None = None,
    decoder: StaticDecoder | None = None,
    emit: Emit | None = None,
) -> list[list[int]]:
    """Tokens of the greedy answers of a left-padded batch, each with the end token that ends it, if one does.

    Args:
        backbone: generates.
        inputs: result of `Backbone.collate`.
        longest: maximum number of tokens of each answer.
        shortest: minimum number of tokens of each answer, 0 for none; with a decoder the same for all.
        leave: called with the indices of the remaining rows [remaining] whenever rows are dropped, so that other state of
            the batch, such as routes, can be narrowed as well (`RoutedExperts.keep`).
        decoder: decodes with fixed shapes, which is faster on CUDA (`static_decoder`); experts must then be routed with
            `every=True`. Without it, and where it cannot decode a batch, shapes follow the batch.
        emit: called with every token as soon as it is chosen; where a decoder decodes, with the first one only.

    Raises:
        DmoleError: the logits are NaN.
    """
    backbone.counts["generations"] += len(inputs["input_ids"])
    most, least = max(longest), min(shortest)
    same = min(longest) == most and max(shortest) == least
    ends = backbone.end_tokens

    def run(decoder: StaticDecoder | None, emit: Emit | None) -> torch.Tensor:
        own = None if same else Lengths(longest, shortest, ends, backbone.device)
        with backbone.autocast():
            return backbone.model.generate(
                **{k: v for k, v in inputs.items() if k != "labels"},
                max_new_tokens=most,
                min_new_tokens=least or None,
                do_sample=False,
                num_beams=1,
                pad_token_id=backbone.inputs.pad_token_id,
                eos_token_id=ends,
                custom_generate=dropping_finished_rows(leave, backbone.counts, decoder, lengths=own, emit=emit),
            )

    tokens = None
    try:
        tokens = run(decoder, emit)
    except torch.OutOfMemoryError as error:
        if decoder is None or not decoder.enabled:
            raise
        decoder.give_up(error)
        decoder.close()
    if tokens is None:  # after the handler, because its exception keeps the tensors of the failed attempt
        tokens = run(None, None)
    return [_ended(row[:most], ends) for row, most in zip(tokens.tolist(), longest, strict=True)]


def _ended(tokens: list[int], ends: Collection[int]) -> list[int]:
    """Tokens up to the first end token, and this one: behind it is padding."""
    return next((tokens[: place + 1] for place, token in enumerate(tokens) if token in ends), tokens)
