"""One sample as a backbone's processor encodes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch


@dataclass
class Encoded:
    """One encoded sample.

    Attributes:
        tokens: prompt tokens, followed by the answer's for training [length].
        labels: the tokens, with `IGNORED` everywhere but in the answer [length]; None without an answer.
        vision: the processor's image tensors; their dimensions depend on the family (see families/base.py).
        instruction: tokens of the question alone, without template and images [length].
        token_types: the processor's other token-wise inputs, such as `token_type_ids` [length].
        images: number of images.
        truncated: whether the question was truncated (see truncation.py).
    """

    tokens: torch.Tensor
    labels: torch.Tensor | None
    vision: dict[str, torch.Tensor]
    instruction: torch.Tensor
    token_types: dict[str, torch.Tensor] = field(default_factory=dict)
    images: int = 0
    truncated: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        labels = () if self.labels is None else (self.labels,)
        return sum(
            t.nbytes
            for t in (self.tokens, self.instruction, *labels, *self.vision.values(), *self.token_types.values())
        )

    def mapped(self, convert: Callable[[Any], Any]) -> Encoded:
        """A copy with every tensor converted."""
        labels = None if self.labels is None else convert(self.labels)
        vision, token_types = ({k: convert(v) for k, v in part.items()} for part in (self.vision, self.token_types))
        tokens, instruction = convert(self.tokens), convert(self.instruction)
        return replace(
            self, tokens=tokens, labels=labels, vision=vision, instruction=instruction, token_types=token_types
        )
