"""Candidate sites: the linear modules of both towers that may host experts, found in the module tree."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from torch import nn

from dmole_cli.errors import DmoleError

BACKBONE_HINT = "a backbone is an image-text-to-text model of transformers with a vision encoder and a decoder"


@dataclass(frozen=True)
class Site:
    """One linear module that may host experts.

    Attributes:
        name: module path in the backbone.
        modality: `vision` or `language`.
        block: index of the block in its tower.
        kind: last part of the path.
        in_features: width of the input.
        out_features: width of the output.
        parameters: of the module itself.
    """

    name: str
    modality: str
    block: int
    kind: str
    in_features: int
    out_features: int
    parameters: int

    def expert_parameters(self, rank: int) -> int:
        """Parameters of an expert of this rank here."""
        return rank * (self.in_features + self.out_features)


def tower_names(model: Any) -> dict[str, str]:
    """Module paths of the vision encoder and the language model.

    Raises:
        DmoleError: the model does not say where its towers are.
    """
    names = {id(module): name for name, module in model.named_modules()}
    try:
        towers = {"vision": model.get_encoder("image"), "language": model.get_decoder()}
    except (AttributeError, TypeError, ValueError) as error:
        message = f"{type(model).__name__} does not name a vision encoder and a decoder: {error}"
        raise DmoleError(message, BACKBONE_HINT) from error
    missing = [
        modality for modality, module in towers.items() if module is None or id(module) not in names or module is model
    ]
    if missing:
        raise DmoleError(
            f"no {' and no '.join(missing)} tower found in {type(model).__name__}",
            BACKBONE_HINT,
        )
    return {modality: names[id(module)] for modality, module in towers.items()}


def block_stack(tower: nn.Module) -> str:
    """Path, inside a tower, of its transformer blocks: the longest module list whose elements hold attention."""
    stacks = [
        (len(module), name)
        for name, module in tower.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) and _attention_names(module[0])
    ]
    if not stacks:
        raise DmoleError(f"no transformer blocks found in {type(tower).__name__}", BACKBONE_HINT)
    return max(stacks, key=lambda s: s[0])[1]


def _attention_names(block: nn.Module) -> list[str]:
    return [name for name, _ in block.named_children() if "attn" in name or "attention" in name]


def find_sites(model: nn.Module, pattern: str) -> list[Site]:
    """Candidate sites in forward order: vision blocks first, then language blocks.

    Args:
        model: the backbone.
        pattern: `attention` (attention projections), `linear` (attention and MLP), or a regular expression that is
            searched in the module paths of the blocks' linear modules.

    Raises:
        DmoleError: the expression is not valid, or nothing matches.
    """
    sites = []
    for modality, tower_name in tower_names(model).items():
        tower = model.get_submodule(tower_name)
        stack = f"{tower_name}.{block_stack(tower)}"
        for index, block in enumerate(model.get_submodule(stack).children()):
            attention = tuple(_attention_names(block))
            for path, module in block.named_modules():
                if isinstance(module, nn.Linear) and _wanted(
                    pattern, f"{stack}.{index}.{path}", path.startswith(attention)
                ):
                    size = sum(p.numel() for p in module.parameters(recurse=False))
                    kind = path.rsplit(".", 1)[-1]
                    shape = (module.in_features, module.out_features)
                    sites.append(Site(f"{stack}.{index}.{path}", modality, index, kind, *shape, size))
    if not sites:
        raise DmoleError(
            f"no site of the backbone matches --sites '{pattern}'", "use attention, linear, or another expression"
        )
    return sites


def _wanted(pattern: str, name: str, in_attention: bool) -> bool:
    if pattern == "linear":
        return True
    if pattern == "attention":
        return in_attention
    try:
        return re.search(pattern, name) is not None
    except re.error as error:
        hint = "use attention, linear, or an expression that Python's re understands"
        raise DmoleError(f"--sites '{pattern}' is not a regular expression: {error}", hint) from error
