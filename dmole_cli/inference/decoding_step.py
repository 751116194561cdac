"""One step of greedy decoding on tensors of fixed size and place: the model on one token per row, and the choice of the next.

Nothing in the step depends on values on the host, and nothing waits for the device, so that it can be captured as a CUDA graph.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from dmole_cli.inference.static_cache import select_rows

# Arguments of the model whose value for a generated token is that of the first one.
REPEATED = ("token_type_ids", "mm_token_type_ids")


@dataclass(frozen=True)
class Limits:
    """When answers end.

    Attributes:
        ends: tokens that end an answer.
        pad: token behind it.
        shortest: number of tokens before which no end token is chosen.
        longest: maximum number of tokens.
    """

    ends: tuple[int, ...]
    pad: int
    shortest: int
    longest: int


@dataclass
class Shared:
    """What the steps of all shapes share, on the device.

    Attributes:
        ends: tokens that end an answer [ends].
        pad: the token behind it.
        position: number of tokens in the cache, without dimensions, as are the following.
        count: number of tokens of each answer so far, [1].
        shortest: number of tokens before which no end token is chosen.
        undefined: whether logits of an unfinished row were NaN.
    """

    ends: torch.Tensor
    pad: int
    position: torch.Tensor
    count: torch.Tensor
    shortest: torch.Tensor
    undefined: torch.Tensor

    @classmethod
    def create(cls, limits: Limits, *, words: int, device: torch.device) -> Shared:
        """For a vocabulary of so many words."""
        ends = torch.tensor([end for end in limits.ends if end < words], dtype=torch.long).to(device)
        place, count, shortest = (torch.zeros(size, dtype=torch.long, device=device) for size in ((), (1,), ()))
        return cls(ends, limits.pad, place, count, shortest, torch.zeros((), dtype=torch.bool, device=device))

    def start(self, limits: Limits, prompt: int, undefined: torch.Tensor) -> None:
        """Begin after the first token of each answer, behind prompts of this length."""
        self.position.fill_(prompt)
        self.count.fill_(1)
        self.shortest.fill_(limits.shortest)
        self.undefined.copy_(undefined)


@dataclass
class Rows:
    """The rows of one shape; those without a sample are finished from the start.

    Attributes:
        tokens: the last token of each row [rows, 1].
        positions: its position [rows, 1] or [axes, rows, 1]; None where the model computes it.
        mask: of the whole cache: 1 for all but the padding [rows, length], of which the model makes its masks; or, where all
            layers attend to all tokens, what is added to the scores of attention [rows, 1, 1, length].
        finished: [rows].
        chosen: the answers so far [rows, length].
        repeated: further arguments of the model [rows, 1].
        scales: of the active experts [rows, 1, ranks].
        cache: static.
    """

    tokens: torch.Tensor
    positions: torch.Tensor | None
    mask: torch.Tensor
    finished: torch.Tensor
    chosen: torch.Tensor
    repeated: dict[str, torch.Tensor]
    scales: list[torch.Tensor]
    cache: Any
    samples: list[int] = field(
        default_factory=list
    )  # the sample of each row; the number of samples where there is none

    @classmethod
    def create(
        cls,
        shape: tuple[int, int],
        first: Mapping[str, Any],
        scales: Sequence[torch.Tensor],
        cache: Any,
        *,
        added: bool,
    ) -> Rows:
        """Tensors for a shape (rows, length) with the types of a batch's arguments and scales; `added`: see `mask`."""
        rows, length = shape
        tokens, positions = first["input_ids"], first.get("position_ids")
        return cls(
            tokens=tokens.new_zeros((rows, 1)),
            positions=None if positions is None else positions.new_zeros((*positions.shape[:-2], rows, 1)),
            mask=cache.layers[0].keys.new_zeros((rows, 1, 1, length)) if added else tokens.new_zeros((rows, length)),
            finished=torch.zeros(rows, dtype=torch.bool, device=tokens.device),
            chosen=tokens.new_zeros((rows, length)),
            repeated={name: first[name].new_zeros((rows, 1)) for name in REPEATED if name in first},
            scales=[values.new_zeros((rows, *values.shape[1:])) for values in scales],
            cache=cache,
        )

    @property
    def added(self) -> bool:
        """Whether the mask is added to the scores of attention."""
        return self.mask.dim() == 4

    def load(
        self, first: Mapping[str, Any], done: torch.Tensor, scales: Sequence[torch.Tensor], *, prompt: int, pad: int
    ) -> None:
        """Set the state after the prompts' forward pass.

        Args:
            first: the model's arguments for the first token of each answer [samples, 1]; without a mask, nothing is padding.
            done: which answers it has ended [samples].
            scales: of the samples.
            prompt: length of the prompts.
            pad: the token behind an answer.
        """
        rows = len(done)
        self.samples = [min(row, rows) for row in range(len(self.tokens))]
        self.tokens.fill_(pad)[:rows].copy_(first["input_ids"])
        if self.positions is not None:
            self.positions.zero_()[..., :rows, :].copy_(first["position_ids"])
        # A row without a sample attends to what the cache holds by chance: a mask of zeros would give NaN.
        self.mask.fill_(-math.inf if self.added else 1)
        seen = self.mask[:, 0, 0, :prompt] if self.added else self.mask[:, :prompt]
        seen.fill_(0 if self.added else 1)
        if "attention_mask" in first:
            own = first["attention_mask"][:, :prompt]
            seen[:rows].masked_fill_(own == 0, -math.inf if self.added else 0)
        self.finished.fill_(True)[:rows].copy_(done)
        self.chosen.fill_(pad)[:rows, :1].copy_(first["input_ids"])
        for name, values in self.repeated.items():
            values.zero_()[:rows].copy_(first[name])
        for own, values in zip(self.scales, scales, strict=True):
            own.zero_()[:rows].copy_(values)

    def take(self, other: Rows, slots: torch.Tensor) -> None:
        """Copy some rows [indices] of another shape of the same length."""
        pairs = [(own, getattr(other, name)) for name, own in vars(self).items() if name in _STATES]
        pairs += [(own, other.repeated[name]) for name, own in self.repeated.items()]
        pairs += zip(self.scales, other.scales, strict=True)
        for own, theirs in pairs:
            own.copy_(theirs.index_select(0, slots))
        if self.positions is not None and other.positions is not None:
            self.positions.copy_(other.positions.index_select(-2, slots))
        select_rows(other.cache, self.cache, slots)


_STATES = ("tokens", "mask", "finished", "chosen")


def step(model: Any, rows: Rows, shared: Shared, constants: Mapping[str, Any]) -> None:
    """Compute the next token of each row, in place.

    Args:
        model: the backbone's model.
        rows: the state.
        shared: the state that is not per row.
        constants: further arguments of the model.
    """
    if rows.added:  # a model makes no mask of its own then, and the kernels of attention convert none
        rows.mask.index_fill_(3, shared.position.view(1), 0)
    positions = {} if rows.positions is None else {"position_ids": rows.positions}
    outputs = model(
        input_ids=rows.tokens,
        attention_mask=rows.mask,
        past_key_values=rows.cache,
        **positions,
        **rows.repeated,
        **constants,
        return_dict=True,
    )
    shared.position.add_(1)
    choose(outputs.logits[:, -1], rows, shared)
    if rows.positions is not None:
        rows.positions.add_(1)


def choose(scores: torch.Tensor, rows: Rows, shared: Shared) -> None:
    """Append the token with the largest score [rows, vocabulary] to the unfinished rows, and padding to the others."""
    ending = scores.index_select(1, shared.ends)
    early = shared.count < shared.shortest
    scores = scores.index_copy(1, shared.ends, ending.masked_fill(early, float("-inf")))
    best = scores.argmax(dim=-1, keepdim=True)
    finished = rows.finished[:, None]
    # The largest of scores with a NaN is NaN.
    shared.undefined |= (scores.gather(1, best).isnan() & ~finished).any()
    rows.tokens.copy_(best.masked_fill(finished, shared.pad))
    rows.chosen.index_copy_(1, shared.count, rows.tokens)
    rows.finished |= (rows.tokens == shared.ends).any(dim=1)
    shared.count.add_(1)
