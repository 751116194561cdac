"""How likely a model finds given answers: a prompt is computed once, and its cache serves all the answers to it.

`generate` of transformers prepares everything for the prompts (cache, positions) and calls this in place of its decoding loop,
through its argument `custom_generate`. The prompts' pass predicts the first token of each answer; of the others only the answers'
own tokens pass through the model, on copies of their prompts' caches.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from dmole_cli.artifacts.likelihood import Likelihoods
from dmole_cli.backbones.backbone import Backbone
from dmole_cli.inference.decoding import select_rows

Narrow = Callable[[torch.Tensor], AbstractContextManager[None]]


def scoring(answers: Sequence[Sequence[torch.Tensor]], *, rows: int, narrow: Narrow | None) -> Callable[..., Any]:
    """Make a function for `generate(custom_generate=...)` that returns the log-probability of each prompt's answers.

    Args:
        answers: of each prompt of the batch, their tokens with the end [length of the answer].
        rows: how many answers pass through the model at once.
        narrow: makes what else knows the batch follow, while the rows with these indices [answers] pass.

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
        # Answers of one length stand together, so that little padding is computed.
        places = sorted(
            ((prompt, nth) for prompt, own in enumerate(answers) for nth in range(len(own))),
            key=lambda place: len(answers[place[0]][place[1]]),
        )
        for start in range(0, len(places), rows):
            here = places[start : start + rows]
            prompts = torch.tensor([prompt for prompt, _ in here], device=input_ids.device)
            tokens = torch.nn.utils.rnn.pad_sequence(
                [answers[p][n] for p, n in here], batch_first=True, padding_value=-1
            )
            tokens = tokens.to(input_ids.device)
            sums = first[prompts, tokens[:, 0]]
            if tokens.shape[1] > 1:
                fed = tokens[:, :-1].clamp(min=0)
                # What stands behind an answer's end changes nothing before it, so the padding needs no mask.
                more = model._update_model_kwargs_for_generation(outputs, dict(kwargs), num_new_tokens=fed.shape[1])
                cache = _copied(more.pop("past_key_values"), prompts)
                more = {name: select_rows(name, value, prompts, len(input_ids)) for name, value in more.items()}
                with nullcontext() if narrow is None else narrow(prompts):
                    logits = _logits(model, torch.cat([input_ids[prompts], fed], dim=1), fed.shape[1], cache, more)
                sums = sums + _log_probabilities(logits, tokens[:, 1:]).sum(dim=1)
            for (prompt, nth), value in zip(here, sums.tolist(), strict=True):
                found[prompt][nth] = value
        return found

    return score


def _logits(model: Any, tokens: torch.Tensor, new: int, cache: Any, kwargs: dict[str, Any]) -> torch.Tensor:
    """Logits [rows, new, vocabulary] of the last `new` tokens [rows, all] behind what the cache holds."""
    inputs = model.prepare_inputs_for_generation(
        tokens, next_sequence_length=new, is_first_iteration=False, past_key_values=cache, **kwargs
    )
    return model(**inputs, return_dict=True).logits[:, -new:]


def _log_probabilities(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Logarithms [rows, length] of the probabilities that logits [rows, length, vocabulary] give to tokens; 0 where -1 stands."""
    own = logits.gather(2, tokens.clamp(min=0)[..., None])[..., 0].float()
    return (own - torch.logsumexp(logits.float(), dim=-1)).masked_fill(tokens < 0, 0.0)


def _copied(cache: Any, rows: torch.Tensor) -> Any:
    """A cache of these rows [indices, in any number] of another one, which stays as it is."""
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
    """How likely each sample of a left-padded batch finds each of its answers, the end of the answer included.

    Args:
        inputs: of `collate`.
        answers: to each sample, at least one to some sample.
        rows: how many answers pass through the model at once.
        narrow: makes what else knows the batch follow while answers pass (`RoutedExperts.narrowed`).
    """
    replies = [[backbone.inputs.reply(answer) for answer in own] for own in answers]
    backbone.counts["likelihood_passes"] += len(replies)
    backbone.counts["likelihood_rows"] += sum(len(own) for own in replies)
    with backbone.autocast():
        sums = backbone.model.generate(
            **{k: v for k, v in inputs.items() if k != "labels"},
            max_new_tokens=max(len(reply) for own in replies for reply in own),
            do_sample=False,
            num_beams=1,
            pad_token_id=backbone.inputs.pad_token_id,
            eos_token_id=backbone.ends,
            custom_generate=scoring(replies, rows=rows, narrow=narrow),
        )
    return [Likelihoods(own, [len(reply) for reply in said]) for own, said in zip(sums, replies, strict=True)]
