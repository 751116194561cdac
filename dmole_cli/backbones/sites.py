"""Candidate sites: the linear modules in the transformer blocks of both towers, found in the module tree.

The model names its towers itself; a tower's blocks are the elements of its module lists that contain attention. No layer name is
hard-coded, so the search covers any model, and every module that is not a site is listed with the reason. The file of a family
can name further vision encoders (see `Family.more_vision`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

from torch import nn

from dmole_cli.backbones.families.base import family_class
from dmole_cli.errors import DmoleError

BACKBONE_HINT = "a backbone is an image-text-to-text model of transformers with a vision encoder and a decoder"


@dataclass(frozen=True)
class Site:
    """One linear module that can host experts.

    Attributes:
        name: module path in the backbone.
        modality: `vision` or `language`.
        block: index of the block in its tower.
        kind: last part of the path, e.g. `q_proj`.
        in_features, out_features: widths of the input and the output.
        parameters: number of parameters of the module itself.
    """

    name: str
    modality: str
    block: int
    kind: str
    in_features: int
    out_features: int
    parameters: int

    def expert_parameters(self, rank: int) -> int:
        """Number of parameters of an expert of this rank at this site."""
        return rank * (self.in_features + self.out_features)


@dataclass(frozen=True)
class LeftOut:
    """Modules that are no sites, with equal paths up to the block index.

    Attributes:
        name: module path, with `*` for the block index.
        modality: `vision`, `language`, or empty between the towers.
        kind: class of the modules.
        modules: number of modules.
        parameters: number of their parameters; tied weights are counted where they occur first.
        why: the reason, for people.
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
        DmoleError: the model does not name its towers, or one of them is not a tower of its own.
    """
    kind = type(model).__name__
    if any(getattr(part, "is_encoder_decoder", False) for part in (model.config, model.config.get_text_config())):
        raise DmoleError(
            f"{kind} is an encoder-decoder model: its answers do not continue the prompt",
            "a backbone is an image-text-to-text model whose language model is a decoder alone",
        )
    names = {id(module): name for name, module in model.named_modules()}
    try:
        encoder, decoder = model.get_encoder("image"), model.get_decoder()
        has_head = decoder is not None and decoder.get_output_embeddings() is not None
    except (AttributeError, TypeError, ValueError, NotImplementedError) as error:
        message = f"{kind} does not name a vision encoder and a decoder: {error}"
        raise DmoleError(message, BACKBONE_HINT) from error
    # Some models name a decoder with its output head.
    language = decoder.get_submodule(block_stack(decoder).rpartition(".")[0]) if has_head else decoder
    towers = {"vision": encoder, "language": language}
    missing = [
        modality for modality, module in towers.items() if module is None or id(module) not in names or module is model
    ]
    if missing:
        raise DmoleError(f"no {' and no '.join(missing)} tower found in {kind}", BACKBONE_HINT)
    if model.get_output_embeddings() is None:
        raise DmoleError(f"{kind} does not name its output head", BACKBONE_HINT)
    found = {modality: names[id(module)] for modality, module in towers.items()}
    if _within(found["language"], found["vision"]):
        raise DmoleError(
            f"the vision encoder of {kind}, {found['vision']}, contains its language model, {found['language']}",
            BACKBONE_HINT,
        )
    return found


def block_stacks(model: Any) -> dict[str, list[str]]:
    """Module paths of each tower's stacks of transformer blocks: modality -> module lists, in forward order.

    A stack is a module list in which any element contains attention. Where one tower is a part of the other one, its stacks are
    its own alone.

    Raises:
        DmoleError: the model does not name its towers, or one has no such list.
    """
    towers = tower_names(model)
    more = [path for path in family_class(model.config.model_type).more_vision if _has(model, path)]
    vision = [towers["vision"], *more]
    found = {
        "vision": [stack for tower in vision for stack in _stacks_within(model, tower)],
        "language": [
            stack
            for stack in _stacks_within(model, towers["language"])
            if not any(_within(stack, tower) for tower in vision)
        ],
    }
    for modality, stacks in found.items():
        if not stacks:
            tower = type(model.get_submodule(towers[modality])).__name__
            raise DmoleError(
                f"no transformer blocks with attention found in the {modality} tower, {tower}", BACKBONE_HINT
            )
    return found


def block_stack(tower: nn.Module) -> str:
    """Path, within a tower, of its longest stack of transformer blocks.

    Raises:
        DmoleError: there is none.
    """
    stacks = _stacks_of(tower)
    if not stacks:
        raise DmoleError(f"no transformer blocks with attention found in {type(tower).__name__}", BACKBONE_HINT)
    return max(stacks, key=lambda stack: len(tower.get_submodule(stack)))  # type: ignore[arg-type]


def blocks_of(model: Any, modality: str) -> list[nn.Module]:
    """The transformer blocks of a tower, in forward order."""
    return [block for stack in block_stacks(model)[modality] for block in model.get_submodule(stack).children()]


def modality_of(site: str, vision_stacks: Iterable[str]) -> str:
    """The tower of a site, `vision` or `language`, by the tower's stacks of blocks."""
    return "vision" if any(_within(site, stack) for stack in vision_stacks) else "language"


def _stacks_within(model: nn.Module, tower: str) -> list[str]:
    return [f"{tower}.{stack}" for stack in _stacks_of(model.get_submodule(tower))]


def _stacks_of(tower: nn.Module) -> list[str]:
    """The outermost module lists of blocks in a tower; the blocks of a list may contain lists of their own."""
    found: list[str] = []
    for name, module in tower.named_modules():
        inside = any(_within(name, outer) for outer in found)
        if isinstance(module, nn.ModuleList) and not inside and any(_attention_names(block) for block in module):
            found.append(name)
    return found


def _has(model: nn.Module, path: str) -> bool:
    return any(name == path for name, _ in model.named_modules())


def _attention_names(block: nn.Module) -> set[str]:
    return {name for name, _ in block.named_children() if "attn" in name or "attention" in name}


def find_sites(model: nn.Module, pattern: str) -> list[Site]:
    """Candidate sites in forward order: vision blocks first, then language blocks.

    Args:
        model: the backbone; its weights are not read and may be on the meta device.
        pattern: `attention` (attention projections), `linear` (attention and MLP), or a regular expression that is
            searched in the module paths of the blocks' linear modules.

    Raises:
        DmoleError: the regular expression is invalid, or nothing matches.
    """
    sites = [site for site, in_attention in _block_linears(model) if _matches(pattern, site.name, in_attention)]
    if not sites:
        raise DmoleError(
            f"no site of the backbone matches --sites '{pattern}'", "use attention, linear, or another expression"
        )
    return sites


def _block_linears(model: nn.Module) -> Iterator[tuple[Site, bool]]:
    """Every linear module of the towers' blocks, and whether it is part of attention."""
    for modality, stacks in block_stacks(model).items():
        blocks = [(f"{stack}.{name}", block) for stack in stacks for name, block in _children(model, stack)]
        for index, (start, block) in enumerate(blocks):
            attention = _attention_names(block)
            for path, module in block.named_modules():
                if _computes_a_product(module):
                    first, kind = path.partition(".")[0], path.rpartition(".")[2]
                    name, shape = f"{start}.{path}", (module.in_features, module.out_features)
                    size = sum(p.numel() for p in module.parameters(recurse=False))
                    yield Site(name, modality, index, kind, *shape, size), first in attention


def _children(model: nn.Module, path: str) -> list[tuple[str, nn.Module]]:
    return list(model.get_submodule(path).named_children())


def _computes_a_product(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a module computes W x + b, quantised or not; subclasses of a model may compute something else, such as routes."""
    kind = type(module)
    return isinstance(module, nn.Linear) and (
        kind.forward is nn.Linear.forward or not kind.__module__.startswith("transformers.")
    )


def _matches(pattern: str, name: str, in_attention: bool) -> bool:
    if pattern == "linear":
        return True
    if pattern == "attention":
        return in_attention
    try:
        return re.search(pattern, name) is not None
    except re.error as error:
        hint = "use attention, linear, or an expression that Python's re understands"
        raise DmoleError(f"--sites '{pattern}' is not a regular expression: {error}", hint) from error


def left_out(model: Any, pattern: str, unreached: Mapping[str, str] | None = None) -> list[LeftOut]:
    """Modules with parameters that are no sites, with the reason; together with the sites they make up the whole model.

    Args:
        model: as for `find_sites`.
        pattern: as for `find_sites`.
        unreached: sites that are no candidates because no loss reaches them, with the reason.

    Raises:
        DmoleError: as for `find_sites`.
    """
    unreached = unreached or {}
    sites = {site.name for site in find_sites(model, pattern) if site.name not in unreached}
    explain = _Explanation(model, pattern)
    counted = {id(p) for name in sites for p in model.get_submodule(name).parameters(recurse=False)}
    found: dict[tuple[str, str, str], LeftOut] = {}
    for name, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        if name in sites or not own:
            continue
        modality = explain.modality(name)
        why = unreached.get(name) or explain.reason(name, module, modality)
        size = sum(p.numel() for p in own if id(p) not in counted)
        counted |= {id(p) for p in own}
        path, kind = re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name), type(module).__name__
        group = found.get((path, kind, why), LeftOut(path, modality, kind, 0, 0, why))
        found[path, kind, why] = replace(group, modules=group.modules + 1, parameters=group.parameters + size)
    return list(found.values())


class _Explanation:
    """Why modules are no sites.

    Args:
        model: the backbone.
        pattern: the pattern of the sites.
    """

    def __init__(self, model: Any, pattern: str) -> None:
        self.pattern = pattern
        self.towers, self.stacks = tower_names(model), block_stacks(model)
        more = [("vision", path) for path in family_class(model.config.model_type).more_vision]
        self._every_tower = [*self.towers.items(), *more]
        self.linears = {site.name for site, _ in _block_linears(model)}
        self.head = model.get_output_embeddings()
        self.projectors = _projectors(model, self.towers, self.stacks)
        self.others = _other_encoders(model, [tower for _, tower in self._every_tower])

    def modality(self, name: str) -> str:
        """The tower of a module path; empty between the towers."""
        if any(_within(name, projector) for projector in self.projectors):
            return ""
        # The innermost tower: in some models the vision encoder is a part of the decoder.
        inside = [(tower, modality) for modality, tower in self._every_tower if _within(name, tower)]
        return max(inside, key=lambda pair: len(pair[0]), default=("", ""))[1]

    def reason(self, name: str, module: nn.Module, modality: str) -> str:
        """Why this module is no site."""
        if module is self.head:
            return "the output head"
        if isinstance(module, nn.Embedding):
            return "an embedding"
        if name in self.linears:
            return f"not matched by --sites {self.pattern}"
        if modality and any(_within(name, stack) for stack in self.stacks[modality]):
            return (
                "not a module that computes a product alone" if isinstance(module, nn.Linear) else "not a linear module"
            )
        if modality:
            return f"outside the {modality} blocks"
        other = next((part for part in self.others if _within(name, part)), None)
        return f"a part of {other}, which is neither tower" if other else "the projector between the towers"


def _other_encoders(model: nn.Module, towers: list[str]) -> list[str]:
    """Modules outside of the towers that have transformer blocks of their own, such as a video encoder."""
    found = []
    for stack in _stacks_of(model):
        parts = stack.split(".")
        paths = [".".join(parts[: end + 1]) for end in range(len(parts))]
        if not any(_within(stack, tower) for tower in towers):
            found.append(next(path for path in paths if not any(_within(tower, path) for tower in towers)))
    return found


def _projectors(model: Any, towers: dict[str, str], stacks: dict[str, list[str]]) -> list[str]:
    """Children of the vision tower that project to the language model's width, in models with nothing between the towers."""
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
        if not any(_within(stack, name) for stack in stacks["vision"])
        and any(isinstance(m, nn.Linear) and m.out_features == width for m in child.modules())
    ]


def _within(name: str, path: str) -> bool:
    return name == path or name.startswith(path + ".")
