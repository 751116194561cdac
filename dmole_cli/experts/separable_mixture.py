"""A separable mixture of LoRA blocks at one site (SMoLoRA, arXiv 2411.13949): two modules, each with a router of its own.

x_vu = B_i A_i x, with i the block that the router of visual understanding chooses for the mean of the site's input,
x_if = B_j A_j x, with j the block that the router of instruction following chooses for the instruction's embedding, and
y = W x + α x_vu + β x_if, with [α, β] = softmax([I_vu x_vu, I_if x_if]) for every token.

Both routers choose once per sample. The mean is that of the prompt's tokens, or of all tokens of the sample's images; it contains
no padding, and not the answer, which generation does not know yet. What is chosen for a prompt holds for its answer, too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch.nn import functional as F

from dmole_cli.backbones.image_layouts import spread
from dmole_cli.experts.routing_plan import RowScales
from dmole_cli.experts.samples import BatchSamples


@dataclass
class SeparableMixture:
    """A separable mixture at one site for one batch.

    Attributes:
        a: A of all blocks [ranks, in], those of visual understanding first, as of `b`. Tensors of a trainable mixture are the
            expert's own ones on their own device, so that gradients reach them.
        b: B of all blocks [out, ranks].
        vu_router: of the blocks of visual understanding [blocks, in].
        if_router: of those of instruction following [blocks, width of an embedding].
        vu_fusion: importance of what the first ones compute [1, out].
        if_fusion: of what the second ones compute [1, out].
        scales: of the tower.
        columns: of the expert's scale per row, 0 where it is not active.
        samples: of the batch.
        owners: sample of each row of the tower [rows]; None where the rows are the samples.
        chosen: weights of all blocks [samples, 2 · blocks], once they are chosen for a forward pass without gradients.
    """

    a: torch.Tensor
    b: torch.Tensor
    vu_router: torch.Tensor
    if_router: torch.Tensor
    vu_fusion: torch.Tensor
    if_fusion: torch.Tensor
    scales: RowScales
    columns: slice
    samples: BatchSamples
    owners: torch.Tensor | None = None
    chosen: torch.Tensor | None = field(default=None, init=False)
    # Which blocks compute depends on the batch.
    fixed: ClassVar[bool] = False

    def matrices(self) -> tuple[torch.Tensor, ...]:
        """Every tensor but the scales."""
        return self.a, self.b, self.vu_router, self.if_router, self.vu_fusion, self.if_fusion

    def add_to(self, output: torch.Tensor, x: torch.Tensor, *, dropout: float = 0.0) -> torch.Tensor:
        """Return output [rows, ..., out] plus the fused outputs of the chosen blocks for x [rows, ..., in].

        `dropout` applies to the input of the blocks, not to that of the routers.
        """
        a, b = self.a.to(x.device, x.dtype), self.b.to(x.device, x.dtype)
        half = len(a) // 2
        weights = self._rows(self._weights(x), output) * self.scales.like(output, self.columns)
        low = F.linear(F.dropout(x, dropout) if dropout else x, a)
        low = low * weights.repeat_interleave(len(a) // weights.shape[-1], dim=-1).to(x.dtype)
        parts = [F.linear(low[..., :half], b[:, :half]), F.linear(low[..., half:], b[:, half:])]
        fusion = (self.vu_fusion.to(x.device), self.if_fusion.to(x.device))
        scores = [F.linear(part.float(), own) for part, own in zip(parts, fusion, strict=True)]
        importance = torch.softmax(torch.cat(scores, dim=-1), dim=-1).to(x.dtype)
        return output + (importance[..., :1] * parts[0] + importance[..., 1:] * parts[1]).to(output.dtype)

    def _rows(self, weights: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """Weights of the samples [samples, blocks] as those of the rows of a tensor [rows, ..., out]."""
        own = self.owners if self.owners is not None else self.samples.kept
        rows = weights if own is None else weights.index_select(0, own.to(weights.device))
        return RowScales(rows[:, None], self.scales.per_sample).like(like, slice(None))

    def _weights(self, x: torch.Tensor) -> torch.Tensor:
        """The weight of each block for each sample [samples, 2 · blocks]: 1 for the chosen two."""
        if self.chosen is not None and not torch.is_grad_enabled():  # the prompt has passed already
            return self.chosen
        with torch.autocast(x.device.type, enabled=False):
            seen = F.linear(self._means(x), self.vu_router.to(x.device))
            asked = F.linear(self.samples.embedded.to(x.device), self.if_router.to(x.device))
            weights = torch.cat([first_choice(seen), first_choice(asked)], dim=-1)
        if not torch.is_grad_enabled():
            self.chosen = weights
        return weights

    def _means(self, x: torch.Tensor) -> torch.Tensor:
        """The mean of x [rows, ..., in] over the tokens of each sample [samples, in], float32 and detached."""
        count, flat = len(self.samples), x.detach().flatten(0, -2).float()
        rows = torch.arange(count, device=x.device) if self.owners is None else self.owners.to(x.device)
        rows, _ = spread(rows, x, per_sample=self.scales.per_sample)
        owners = rows.repeat_interleave(len(flat) // len(rows))
        if self.owners is None and self.samples.prompts.numel() == len(owners):
            # Tokens outside of a prompt belong to a row of their own, which is cut off.
            owners = owners.where(self.samples.prompts.to(x.device).flatten(), count)
        sums = flat.new_zeros(count + 1, flat.shape[1]).index_add_(0, owners, flat)
        tokens = flat.new_zeros(count + 1).index_add_(0, owners, flat.new_ones(len(owners)))
        return (sums / tokens.clamp(min=1)[:, None])[:count]


def first_choice(logits: torch.Tensor) -> torch.Tensor:
    """1 for the largest of each sample's logits [samples, blocks] and 0 for the others: softmax(top_1(logits)).

    That is constant, so that a router which trains gets the straight-through gradient (arXiv 1308.3432): that of the softmax.
    """
    chosen = F.one_hot(logits.argmax(dim=-1), logits.shape[-1]).to(logits.dtype)
    if not logits.requires_grad:
        return chosen
    soft = torch.softmax(logits, dim=-1)
    return chosen + soft - soft.detach()
