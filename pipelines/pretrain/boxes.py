"""The numbers of a box as tokens: a loss that knows which numbers are near each other, and how far two boxes agree."""

from __future__ import annotations

import torch
from torch.nn import functional as F


class Coordinates:
    """The tokens of a box's numbers, and a cross-entropy that spreads each of them over its neighbours on the number line.

    A coordinate one step beside the right one is nearly right; with hard targets the loss does not say so. Targets are a
    Gaussian of `blur` steps around the right number (histogram loss: Farebrother et al., https://arxiv.org/abs/2403.03950).
    """

    def __init__(self, tokenizer, blur: float) -> None:
        self.value: dict[int, int] = {}
        soft = torch.eye(len(tokenizer))
        for form in ("[{}", ", {}"):
            ids = [tokenizer(form.format(20 * step))["input_ids"] for step in range(51)]
            if any(len(i) != 1 for i in ids):
                raise SystemExit("a coordinate is more than one token; the corpus of the tokenizer must hold them all")
            tokens = torch.tensor([i[0] for i in ids])
            self.value |= {int(t): 20 * step for step, t in enumerate(tokens)}
            if blur:
                distance = torch.arange(51)[:, None] - torch.arange(51)[None]
                weight = torch.exp(-0.5 * (distance / blur) ** 2)
                soft[tokens[:, None], tokens[None]] = weight / weight.sum(1, keepdim=True)
        self.targets = soft

    def loss(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of logits [n, vocabulary] with the soft target of each of the tokens [n]."""
        return F.cross_entropy(logits, self.targets[target])

    def box(self, tokens: list[int]) -> tuple[int, ...] | None:
        """The four numbers of an answer's tokens, or None where they are not four."""
        numbers = tuple(self.value[t] for t in tokens if t in self.value)
        return numbers if len(numbers) == 4 else None


def overlap(a: tuple[int, ...] | None, b: tuple[int, ...] | None) -> float:
    """Intersection over union of two boxes (x1, y1, x2, y2); 0 where one is missing or empty."""
    if a is None or b is None:
        return 0.0
    shared = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    union = sum(max(0, c[2] - c[0]) * max(0, c[3] - c[1]) for c in (a, b)) - shared
    return shared / union if union else 0.0
