"""Sites of a model that have the same input, such as the projections of queries, keys and values.

Their experts' A are stacked, so that one product serves all of them (layer.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeGuard

from torch import nn

from dmole_cli.backbones.device import is_offloaded

# Names of modules that receive the same tensor where they have the same parent. In cross-attention, keys and values have another
# input than queries; `same_input` leaves such parents out, and a group whose sites turn out to differ still computes correctly.
SAME_INPUT = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("q", "k", "v"),
    ("gate_proj", "up_proj"),
    ("w1", "w3"),
)
_GROUP_OF = {name: group for group in SAME_INPUT for name in group}


def same_input(sites: Iterable[str], model: nn.Module) -> list[tuple[str, ...]]:
    """Divide sites into groups with the same input, in the order of each group's first site.

    Args:
        sites: module paths.
        model: has the modules.
    """
    groups: dict[tuple[Any, ...], list[str]] = {}
    for site in sites:
        parent, _, name = site.rpartition(".")
        known = name in _GROUP_OF and "cross" not in parent.lower()
        width = getattr(model.get_submodule(site), "in_features", 0)
        groups.setdefault((parent, _GROUP_OF[name], width) if known else (site,), []).append(site)
    return [tuple(group) for group in groups.values()]


def is_plain(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a module is a frozen linear layer in memory that nothing else observes or replaces.

    What such a module computes can be computed elsewhere with the same result.
    """
    if type(module) is not nn.Linear or "forward" in vars(module) or is_offloaded(module):
        return False
    if module._forward_hooks or module._forward_pre_hooks:
        return False
    return not any(parameter.requires_grad for parameter in module.parameters())
