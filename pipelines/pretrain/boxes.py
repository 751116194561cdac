"""Box coordinates as tokens: a loss that takes the distance of coordinates into account, and the overlap of two boxes."""

from __future__ import annotations

import torch
from torch.nn import functional as F


class Coordinates:
    """The tokens of coordinates, and a cross-entropy with soft targets for them.

    With hard targets, a coordinate that is off by one step costs as much as any other. The targets here are a Gaussian with a
    standard deviation of `blur` steps around the reference (histogram loss: Farebrother et al., https://arxiv.org/abs/2403.03950).
    """

    def __init__(self, tokenizer, blur: float) -> None:
        self.value: dict[int, int] = {}
        soft = torch.eye(len(tokenizer))
        for form in ("[{}", ", {}"):
            ids = [tokenizer(form.format(20 * step))["input_ids"] for step in range(51)]
            if any(len(i) != 1 for i in ids):
                raise SystemExit(
                    "a coordinate is more than one token; train the tokenizer on a corpus with all coordinates"
                )
            tokens = torch.tensor([i[0] for i in ids])
            self.value |= {int(t): 20 * step for step, t in enumerate(tokens)}
            if blur:
                distance = torch.arange(51)[:, None] - torch.arange(51)[None]
                weight = torch.exp(-0.5 * (distance / blur) ** 2)
                soft[tokens[:, None], tokens[None]] = weight / weight.sum(1, keepdim=True)
        self.targets = soft

    def loss(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of logits [n, vocabulary] with the soft targets of the tokens `target` [n]."""
        return F.cross_entropy(logits, self.targets[target])

    def box(self, tokens: list[int]) -> tuple[int, ...] | None:
        """The box (x1, y1, x2, y2) in an answer's tokens, or None unless they hold exactly four coordinates."""
        numbers = tuple(self.value[t] for t in tokens if t in self.value)
        return numbers if len(numbers) == 4 else None


def overlap(a: tuple[int, ...] | None, b: tuple[int, ...] | None) -> float:
    """Intersection over union of two boxes (x1, y1, x2, y2); 0 if one of them is missing or empty."""
    if a is None or b is None:
        return 0.0
    shared = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    union = sum(max(0, c[2] - c[0]) * max(0, c[3] - c[1]) for c in (a, b)) - shared
    return shared / union if union else 0.0
