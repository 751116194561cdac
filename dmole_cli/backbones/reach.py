"""Sites that no loss reaches: they lie in blocks of the vision encoder whose output the language model never gets.

Some configurations name the hidden states of the vision encoder that the projector reads, such as `vision_feature_layer`: -2 in
LLaVA, a list in VipLLaVA. The blocks above the highest of them are computed for nothing. This is read from the configuration,
without a pass through the model; what it does not say shows as a gradient of zero in a profile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dmole_cli.backbones.sites import Site, blocks_of, find_sites
from dmole_cli.errors import DmoleError


def find_candidates(model: Any, pattern: str) -> list[Site]:
    """The sites that may get experts, in forward order: those of `find_sites` that a loss reaches.

    Args:
        model: the backbone; its weights are not read and may be on the meta device.
        pattern: as for `find_sites`.

    Raises:
        DmoleError: as for `find_sites`, or no loss reaches any site that the pattern matches.
    """
    sites = find_sites(model, pattern)
    unreached = unreached_sites(model, sites)
    if len(unreached) == len(sites):
        why = unreached[sites[0].name]
        raise DmoleError(f"no loss reaches a site that --sites '{pattern}' matches: {why}", "use another expression")
    return [site for site in sites if site.name not in unreached]


def unreached_sites(model: Any, sites: Sequence[Site]) -> dict[str, str]:
    """Names of the sites that no loss reaches, with the reason."""
    layers = _hidden_states_read(model.config)
    if layers is None or not any(site.modality == "vision" for site in sites):
        return {}
    blocks = len(blocks_of(model, "vision"))
    # Hidden state 0 is the input of block 0, and state n the output of block n - 1.
    highest = max(layer if layer >= 0 else layer + blocks + 1 for layer in layers)
    why = f"no loss reaches it: the language model gets the output of vision block {highest - 1}"
    return {site.name: why for site in sites if site.modality == "vision" and site.block >= highest}


def _hidden_states_read(config: Any) -> list[int] | None:
    """Indices of the vision encoder's hidden states that the rest of the model reads; None where all may be."""
    # Granite 4 Vision reads these in place of `vision_feature_layer`.
    if pairs := getattr(config, "deepstack_layer_map", None):
        return [*(vision for vision, _ in pairs), getattr(config, "spatial_vision_layer", -1)]
    layers = getattr(config, "vision_feature_layer", None)
    return [layers] if isinstance(layers, int) else list(layers) if layers else None
