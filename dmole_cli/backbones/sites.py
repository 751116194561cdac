"""Candidate sites: the linear modules of both towers that may host experts, found in the module tree.

The towers are those that the model itself names; their blocks are the longest list of modules that hold attention. No name of
a family and no name of a layer is known here, so that what is left out can be said of any model, with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
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


@dataclass(frozen=True)
class LeftOut:
    """Modules of one place in the model that host no expert.

    Attributes:
        name: module path, the number of the block replaced by `*`.
        modality: `vision`, `language`, or empty between the towers.
        kind: the modules' class.
        modules: how many there are.
        parameters: of all of them; what an earlier line has counted already (tied weights) is not counted again.
        why: in words.
    """

    name: str
    modality: str
    kind: str
    modules: int
    parameters: int
    why: str


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
    """Path, inside a tower, of its transformer blocks: the longest module list in which any element holds attention."""
    stacks = [
        (len(module), name)
        for name, module in tower.named_modules()
        if isinstance(module, nn.ModuleList) and any(_attention_names(block) for block in module)
    ]
    if not stacks:
        raise DmoleError(f"no transformer blocks found in {type(tower).__name__}", BACKBONE_HINT)
    return max(stacks, key=lambda s: s[0])[1]


def _attention_names(block: nn.Module) -> set[str]:
    return {name for name, _ in block.named_children() if "attn" in name or "attention" in name}


def find_sites(model: nn.Module, pattern: str) -> list[Site]:
    """Candidate sites in forward order: vision blocks first, then language blocks.

    Args:
        model: the backbone; its weights are not looked at, they may lie on the meta device.
        pattern: `attention` (attention projections), `linear` (attention and MLP), or a regular expression that is
            searched in the module paths of the blocks' linear modules.

    Raises:
        DmoleError: the expression is not valid, or nothing matches.
    """
    sites = [site for site, in_attention in _hosts(model) if _wanted(pattern, site.name, in_attention)]
    if not sites:
        raise DmoleError(
            f"no site of the backbone matches --sites '{pattern}'", "use attention, linear, or another expression"
        )
    return sites


def _hosts(model: nn.Module) -> Iterator[tuple[Site, bool]]:
    """Every linear module of the towers' blocks, and whether it lies in attention."""
    for modality, stack in _stacks(model).items():
        for index, block in enumerate(model.get_submodule(stack).children()):
            attention = _attention_names(block)
            for path, module in block.named_modules():
                if isinstance(module, nn.Linear):
                    first, kind = path.partition(".")[0], path.rpartition(".")[2]
                    name, shape = f"{stack}.{index}.{path}", (module.in_features, module.out_features)
                    size = sum(p.numel() for p in module.parameters(recurse=False))
                    yield Site(name, modality, index, kind, *shape, size), first in attention


def _stacks(model: nn.Module) -> dict[str, str]:
    """Module path of each tower's blocks."""
    return {
        modality: f"{tower}.{block_stack(model.get_submodule(tower))}" for modality, tower in tower_names(model).items()
    }


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


def left_out(model: Any, pattern: str) -> list[LeftOut]:
    """What of the model hosts no expert, with the reason; together with the sites it is the whole model.

    Args:
        model: as for `find_sites`.
        pattern: as for `find_sites`.
    """
    sites = {site.name for site in find_sites(model, pattern)}
    towers, stacks = tower_names(model), _stacks(model)
    hosts = {site.name for site, _ in _hosts(model)}
    counted = {id(p) for name in sites for p in model.get_submodule(name).parameters(recurse=False)}
    heads = {id(module) for module in (model.get_output_embeddings(),) if module is not None}
    projectors = _projectors(model, towers, stacks)
    found: dict[tuple[str, str, str], LeftOut] = {}
    for name, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        if name in sites or not own:
            continue
        # The innermost tower: some models keep the vision encoder inside of what they call the decoder.
        modality = max((m for m in towers if _within(name, towers[m])), key=lambda m: len(towers[m]), default="")
        if any(_within(name, projector) for projector in projectors):
            modality = ""
        if id(module) in heads:
            why = "the output head"
        elif isinstance(module, nn.Embedding):
            why = "an embedding"
        elif name in hosts:
            why = f"not matched by --sites {pattern}"
        elif modality and _within(name, stacks[modality]):
            why = "no linear module, cannot host an expert"
        elif modality:
            why = f"outside of the {modality} blocks"
        else:
            why = "the projector between the towers"
        size = sum(p.numel() for p in own if id(p) not in counted)
        counted |= {id(p) for p in own}
        place, kind = re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name), type(module).__name__
        seen = found.get((place, kind, why), LeftOut(place, modality, kind, 0, 0, why))
        found[place, kind, why] = replace(seen, modules=seen.modules + 1, parameters=seen.parameters + size)
    return list(found.values())


def _projectors(model: Any, towers: dict[str, str], stacks: dict[str, str]) -> list[str]:
    """Parts of the vision tower that lead into the language model, in models with nothing between the towers."""
    head = model.get_output_embeddings()
    inside = {id(p) for tower in towers.values() for p in model.get_submodule(tower).parameters()}
    inside |= {id(p) for p in head.parameters()} if head is not None else set()
    if any(id(p) not in inside for p in model.parameters()):
        return []
    width = model.get_input_embeddings().weight.shape[1]
    children = {f"{towers['vision']}.{name}": m for name, m in model.get_submodule(towers["vision"]).named_children()}
    return [
        name
        for name, child in children.items()
        if not _within(stacks["vision"], name)
        and any(isinstance(m, nn.Linear) and m.out_features == width for m in child.modules())
    ]


def _within(name: str, path: str) -> bool:
    return name == path or name.startswith(path + ".")
