"""SMoLoRA: a separable mixture of LoRA blocks at every site, routed per sample and fine-tuned sequentially.

Paper: arXiv 2411.13949 (ICCV 2025). The formulas are in `experts/separable_mixture.py`. All blocks and the fusion train in the
whole stream, with the loss on the answers alone.

The paper selects one block of each module by softmax(top_1(logits)), which is 1 whatever the logit is; the authors' code selects
by a one-hot vector. Neither passes a gradient to a router, so routers stay as they were initialised. That is the default here:
they are stored, do not train, and do not count as parameters. `trained_routers` gives them a straight-through gradient.

What stands for parts that the protocol does not have:
- The instruction's embedding is the mean of the backbone's token embeddings over the sample's question. The paper embeds a task's
  instruction with Sentence-BERT, and the authors' code is told the task at test time.
- The blocks are at all candidate sites; the paper has them in feed-forward layers and the projector.
- The rank that the budget allows is split over the blocks. Where it allows less than rank 1 for each, there are fewer blocks.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from dmole_cli.errors import DmoleError
from dmole_cli.methods.base import LoadedContext, Method, Option, candidate_sites

if TYPE_CHECKING:
    import torch

    from dmole_cli.experts.expert import Expert


class Smolora(Method):
    """Sequential fine-tuning of a separable mixture."""

    paper = "https://arxiv.org/abs/2411.13949"
    options = {
        "blocks": Option(4.0, "Number of LoRA blocks of each of the two modules at a site.", ge=1.0, whole=True),
        "trained_routers": Option(0.0, "1 trains the routers, 0 keeps them as initialised.", le=1.0, whole=True),
    }
    continues = True
    shaping = ("blocks", "trained_routers")

    def new_expert(self, context: LoadedContext, generator: torch.Generator) -> Expert:
        """Blocks of equal rank at every candidate site, with routers and fusion initialised as linear layers are.

        Raises:
            DmoleError: the budget is smaller than one block of rank 1 for each module at every site.
        """
        from dmole_cli.experts.expert import new_expert

        sites, budget = candidate_sites(context)
        width = context.backbone.model.get_input_embeddings().weight.shape[-1]
        widths = sum(site.in_features + site.out_features for site in sites)
        fusion = 2 * sum(site.out_features for site in sites)
        trained = bool(context.options["trained_routers"])
        routers = sum(site.in_features + width for site in sites) if trained else 0
        blocks = min(int(context.options["blocks"]), (budget - fusion) // (2 * widths + routers))
        if blocks < 1:
            message = (
                f"a budget of {budget} parameters does not hold two blocks of rank 1 with their fusion at every site"
            )
            raise DmoleError(message, f"raise --budget to at least params:{2 * widths + routers + fusion}")
        rank = (budget - fusion - blocks * routers) // (2 * blocks * widths)
        shapes = {site.name: (2 * blocks * rank, site.in_features, site.out_features) for site in sites}
        place = context.backbone.device_of
        expert = new_expert(shapes, scale=self.scale(context), generator=generator, device=place)
        for site in sites:
            drawn = {
                name: _linear(*shape, generator).to(place(site.name))
                for name, shape in {
                    "vu_router": (blocks, site.in_features),
                    "if_router": (blocks, width),
                    "vu_fusion": (1, site.out_features),
                    "if_fusion": (1, site.out_features),
                }.items()
            }
            trains = {name for name in drawn if trained or name.endswith("fusion")}
            expert.gates[site.name] = {name: drawn[name].requires_grad_() for name in drawn if name in trains}
            expert.buffers[site.name] = {name: drawn[name] for name in drawn if name not in trains}
        return expert


def _linear(outputs: int, inputs: int, generator: torch.Generator) -> torch.Tensor:
    """The weight of a new linear layer [outputs, inputs], as torch initialises it."""
    import torch

    bound = 1 / math.sqrt(inputs)
    return torch.empty(outputs, inputs).uniform_(-bound, bound, generator=generator)
