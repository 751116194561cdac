"""The sum of several experts as one LoRA adapter of a single rank and scale, which every reader of the format applies alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from dmole_cli.artifacts.expert import ExpertFile

Pair = tuple[torch.Tensor, torch.Tensor]


def joined(experts: Sequence[ExpertFile]) -> dict[str, Pair]:
    """Matrices whose product is the sum of the experts' updates: B A = Σ scale_e B_e A_e at every site.

    Ranks are joined: A = [A_1; A_2; 0] and B = [scale_1 B_1, scale_2 B_2, 0]. Rows and columns of zeros bring all sites to the
    same rank, because vLLM reads one rank and one alpha per adapter, and ignores `rank_pattern` and `alpha_pattern`
    (https://docs.vllm.ai/en/latest/api/vllm/lora/peft_helper/). With the scales in B, alpha is the rank.

    Args:
        experts: without gates; one or more.

    Returns:
        Site -> (A [rank, in], B [out, rank]), float32, sorted by site; the rank is the largest sum of ranks at a site.
    """
    parts: dict[str, list[Pair]] = {}
    for expert in experts:
        for site, (a, b) in expert.sites.items():
            parts.setdefault(site, []).append((a.float(), b.float() * expert.scale))
    rank = rank_of(experts)
    return {site: _padded(pairs, rank) for site, pairs in sorted(parts.items())}


def rank_of(experts: Sequence[ExpertFile]) -> int:
    """The rank of the joined adapter; needs the shapes alone."""
    sites = {site for expert in experts for site in expert.sites}
    return max(sum(_rank_at(expert.sites, site) for expert in experts) for site in sites)


def _rank_at(sites: Mapping[str, Pair], site: str) -> int:
    return len(sites[site][0]) if site in sites else 0


def _padded(pairs: Sequence[Pair], rank: int) -> Pair:
    a, b = torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs], dim=1)
    missing = rank - len(a)
    return torch.cat([a, a.new_zeros(missing, a.shape[1])]), torch.cat([b, b.new_zeros(len(b), missing)], dim=1)
