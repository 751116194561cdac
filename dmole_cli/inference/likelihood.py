"""Likelihoods of given answers: a prompt is computed once, and its cache is shared by all answers to it.

`generate` of transformers prepares everything for the prompts (cache, positions) and calls this code instead of its decoding
loop, by its argument `custom_generate`. The forward pass of the prompts predicts the first token of each answer; then only the
answers' own tokens pass through the model, on copies of their prompts' caches.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from dmole_cli.artifacts.likelihood import Likelihoods
from dmole_cli.backbones.backbone import Backbone
from dmole_cli.inference.decoding import select_rows, undefined_outputs

Narrow = Callable[[torch.Tensor], AbstractContextManager[None]]


def scoring(answers: Sequence[Sequence[torch.Tensor]], *, rows: int, narrow: Narrow | None) -> Callable[..., Any]:
    """Make a function for `generate(custom_generate=...)` that returns the log-probability of each prompt's answers.

    Args:
        answers: tokens of the answers to each prompt of the batch, with the end token [length of the answer].
        rows: number of answers per forward pass.
        narrow: context in which other state of the batch, such as routes, is that of these prompts [indices].

    Returns:
        A function whose result has the shape of `answers`: natural logarithms, summed over the tokens of an answer.
    """

    def score(model: Any, input_ids: torch.Tensor, **kwargs) -> list[list[float]]:
        for unused in ("logits_processor", "stopping_criteria", "generation_config"):
            kwargs.pop(unused)
        inputs = model.prepare_inputs_for_generation(input_ids, is_first_iteration=True, **kwargs)
        outputs = model(**inputs, return_dict=True)
        first = torch.log_softmax(outputs.logits[:, -1].float(), dim=-1)
        kwargs.pop("logits_to_keep", None)
        found = [[0.0] * len(own) for own in answers]
        # Sorted by length, which limits padding.
        pairs = sorted(
            ((prompt, nth) for prompt, own in enumerate(answers) for nth in range(len(own))),
            key=lambda pair: len(answers[pair[0]][pair[1]]),
        )
        for start in range(0, len(pairs), rows):
            batch = pairs[start : start + rows]
            prompts = torch.tensor([prompt for prompt, _ in batch], device=input_ids.device)
            tokens = pad_sequence([answers[p][n] for p, n in batch], batch_first=True, padding_value=-1)
            tokens = tokens.to(input_ids.device)
            sums = first[prompts, tokens[:, 0]]
            if tokens.shape[1] > 1:
                fed = tokens[:, :-1].clamp(min=0)
                # Attention is causal: padding behind an answer does not change its logits and needs no mask.
                more = model._update_model_kwargs_for_generation(
                    outputs, dict(kwargs), is_encoder_decoder=False, num_new_tokens=fed.shape[1]
                )
                cache = _copied_rows(more.pop("past_key_values"), prompts)
                more = {name: select_rows(name, value, prompts, len(input_ids)) for name, value in more.items()}
                with nullcontext() if narrow is None else narrow(prompts):
                    logits = _logits(model, torch.cat([input_ids[prompts], fed], dim=1), fed.shape[1], cache, more)
                sums = sums + _log_probabilities(logits, tokens[:, 1:]).sum(dim=1)
            for (prompt, nth), value in zip(batch, sums.tolist(), strict=True):
                found[prompt][nth] = value
        return found

    return score


def _logits(model: Any, tokens: torch.Tensor, new: int, cache: Any, kwargs: dict[str, Any]) -> torch.Tensor:
    """Logits [rows, new, vocabulary] of the last `new` of the tokens [rows, length]; the others are in the cache."""
    inputs = model.prepare_inputs_for_generation(
        tokens, next_sequence_length=new, is_first_iteration=False, past_key_values=cache, **kwargs
    )
    return model(**inputs, return_dict=True).logits[:, -new:]


def _log_probabilities(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Log-probabilities [rows, length] of tokens [rows, length] under logits [rows, length, vocabulary]; 0 for padding (-1)."""
    own = logits.gather(2, tokens.clamp(min=0)[..., None])[..., 0].float()
    return (own - torch.logsumexp(logits.float(), dim=-1)).masked_fill(tokens < 0, 0.0)


def _copied_rows(cache: Any, rows: torch.Tensor) -> Any:
    """A copy of some rows [indices, repetitions allowed] of a cache, which stays unchanged."""
    twin = copy.copy(cache)
    twin.layers = []
    for layer in cache.layers:
        other = copy.copy(layer)
        # Some layers keep their states in dictionaries, which a shallow copy would share.
        vars(other).update({name: dict(value) for name, value in vars(layer).items() if isinstance(value, dict)})
        twin.layers.append(other)
    twin.reorder_cache(rows)
    return twin


@torch.no_grad()
def answer_likelihoods(
    backbone: Backbone,
    inputs: dict[str, torch.Tensor],
    *,
    answers: Sequence[Sequence[str]],
    rows: int,
    narrow: Narrow | None = None,
) -> list[Likelihoods]:
    """Likelihoods of each sample's answers in a left-padded batch, the end token included.

    Args:
        backbone: computes them.
        inputs: result of `Backbone.collate`.
        answers: answers of each sample, at least one in total.
        rows: number of answers per forward pass.
        narrow: context in which other state of the batch is that of some prompts (`RoutedExperts.narrowed`).

    Raises:
        DmoleError: the logits are NaN.
    """
    tokens = [[backbone.inputs.answer_tokens(answer) for answer in own] for own in answers]
    backbone.counts["likelihood_passes"] += len(tokens)
    backbone.counts["likelihood_rows"] += sum(len(own) for own in tokens)
    with backbone.autocast():
        sums = backbone.model.generate(
            **{k: v for k, v in inputs.items() if k != "labels"},
            max_new_tokens=max(len(answer) for own in tokens for answer in own),
            do_sample=False,
            num_beams=1,
            pad_token_id=backbone.inputs.pad_token_id,
            eos_token_id=backbone.end_tokens,
            custom_generate=scoring(tokens, rows=rows, narrow=narrow),
        )
    if any(math.isnan(value) for own in sums for value in own):
        raise undefined_outputs()
    return [Likelihoods(own, [len(answer) for answer in row]) for own, row in zip(sums, tokens, strict=True)]
