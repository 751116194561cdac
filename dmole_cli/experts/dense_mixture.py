"""A dense mixture of LoRA parts at one site, weighted per token by a softmax gate (MoELoRA of CoIN, arXiv 2403.08350)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn import functional as F

from dmole_cli.experts.routing_plan import RowScales


@dataclass
class DenseMixture:
    """A dense mixture at one site for one batch.

    Attributes:
        a: A of all parts [ranks, in]; of a trainable mixture the expert's own tensor on its own device, so that gradients
            reach it, as are b and gate.
        b: B of all parts [out, ranks].
        gate: weights of the gate's logits [parts, in].
        scales: of the tower.
        columns: of the expert's scale per row, 0 where it is not active.
    """

    a: torch.Tensor
    b: torch.Tensor
    gate: torch.Tensor
    scales: RowScales
    columns: slice
    # Its tensors are the same for every batch, but for the scales, so that CUDA graphs can hold them.
    fixed: ClassVar[bool] = True

    def matrices(self) -> tuple[torch.Tensor, ...]:
        """Every tensor but the scales."""
        return self.a, self.b, self.gate

    def add_to(self, output: torch.Tensor, x: torch.Tensor, *, dropout: float = 0.0) -> torch.Tensor:
        """Return output [rows, ..., out] plus the weighted sum of the parts' outputs for x [rows, ..., in].

        `dropout` applies to the input of the parts, not to that of the gate.
        """
        a, b, gate = (matrix.to(x.device) for matrix in (self.a, self.b, self.gate))
        weights = torch.softmax(F.linear(x.float(), gate.float()), dim=-1) * self.scales.like(output, self.columns)
        low = F.linear(F.dropout(x, dropout) if dropout else x, a.to(x.dtype))
        low = low * weights.repeat_interleave(len(a) // len(gate), dim=-1).to(x.dtype)
        return output + F.linear(low, b.to(x.dtype)).to(output.dtype)
