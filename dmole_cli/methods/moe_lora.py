"""MoELoRA: a dense mixture of LoRA experts at every site, gated per token and fine-tuned sequentially.

Paper: CoIN, arXiv 2403.08350. Nothing is frozen, no loss balances the load; the rank that the budget allows is split over the
experts. Where it allows less than rank 1 for each of them, there are fewer experts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dmole_cli.errors import DmoleError
from dmole_cli.methods.base import LoadedContext, Method, Option, candidate_sites

if TYPE_CHECKING:
    import torch

    from dmole_cli.experts.expert import Expert


class MoeLora(Method):
    """Sequential fine-tuning of a dense mixture."""

    paper = "https://arxiv.org/abs/2403.08350"
    options = {"experts": Option(8.0, "Number of LoRA experts at a site.", ge=1.0, whole=True)}
    continues = True
    shaping = ("experts",)

    def new_expert(self, context: LoadedContext, generator: torch.Generator) -> Expert:
        """Experts of equal rank at every candidate site, and a gate at zero, which weighs all of them equally.

        Raises:
            DmoleError: the budget is smaller than one expert of rank 1 with its gate at every site.
        """
        import torch

        from dmole_cli.experts.expert import new_expert

        sites, budget = candidate_sites(context)
        widths = sum(site.in_features + site.out_features for site in sites)
        gates = sum(site.in_features for site in sites)
        parts = min(int(context.options["experts"]), budget // (widths + gates))
        if parts < 1:
            message = f"a budget of {budget} parameters does not hold one expert of rank 1 with its gate at every site"
            raise DmoleError(message, f"raise --budget to at least params:{widths + gates}")
        rank = (budget // parts - gates) // widths
        shapes = {site.name: (parts * rank, site.in_features, site.out_features) for site in sites}
        place = context.backbone.device_of
        expert = new_expert(shapes, scale=self.scale(context), generator=generator, device=place)
        expert.gates = {
            s.name: {"gate": torch.zeros(parts, s.in_features, device=place(s.name), requires_grad=True)} for s in sites
        }
        return expert
