"""What is known of the samples of a batch, for mixtures that choose their parts once per sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from dmole_cli.backbones.backbone import IGNORED, Backbone, Encoded
from dmole_cli.backbones.device import device_of


@dataclass
class BatchSamples:
    """The samples of a batch; nothing is computed before a mixture asks for it.

    Attributes:
        instructions: tokens of each sample's question, without template and images [length].
        embedding: the backbone's table of token embeddings.
        mask: 1 for the tokens of the batch that are no padding [samples, tokens].
        labels: of the batch [samples, tokens]; None where it has no answers.
        kept: indices of the samples that the batch still has; None for all of them.
    """

    instructions: Sequence[torch.Tensor]
    embedding: nn.Module
    mask: torch.Tensor
    labels: torch.Tensor | None = None
    kept: torch.Tensor | None = None

    def __len__(self) -> int:
        """Number of samples that the batch had at first."""
        return len(self.instructions)

    @cached_property
    def prompts(self) -> torch.Tensor:
        """Which tokens of the batch belong to a prompt [samples, tokens]: neither padding nor answer."""
        mask = self.mask.bool()
        return mask if self.labels is None else mask & (self.labels == IGNORED).to(mask.device)

    @cached_property
    def embedded(self) -> torch.Tensor:
        """Mean of the token embeddings of each instruction [samples, width], float32; zeros for an empty one."""
        device = device_of(self.embedding)
        lengths = torch.tensor([len(tokens) for tokens in self.instructions], device=device)
        tokens = pad_sequence(list(self.instructions), batch_first=True).to(device)
        own = torch.arange(tokens.shape[1], device=device)[None] < lengths[:, None]
        with torch.no_grad():
            states = self.embedding(tokens).float().masked_fill(~own[..., None], 0.0)
        return states.sum(dim=1) / lengths.clamp(min=1)[:, None]

    def keep(self, samples: torch.Tensor) -> None:
        """Reduce the batch to these samples [indices in what is left of it]."""
        self.kept = samples if self.kept is None else self.kept[samples.to(self.kept.device)]


def batch_samples(backbone: Backbone, encoded: Sequence[Encoded], inputs: Mapping[str, torch.Tensor]) -> BatchSamples:
    """The samples of a batch.

    Args:
        backbone: has collated them.
        encoded: in the order of the batch.
        inputs: result of `Backbone.collate`.
    """
    table = backbone.model.get_input_embeddings()
    instructions = [sample.instruction for sample in encoded]
    return BatchSamples(instructions, table, inputs["attention_mask"], inputs.get("labels"))
