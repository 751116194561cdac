"""HiDe-LLaVA: a LoRA per task; those of the top layer are weighted by the sample's similarity to tasks, all others are merged.

Paper: Guo et al., HiDe-LLaVA, ACL 2025, arXiv 2503.12941; public code: github.com/Ghy0501/HiDe-LLaVA (and MCITlib).

A task's LoRA trains alone, from the pretrained backbone. After T tasks, in the top block of the language model
    y = W x + sum over tasks of d_c (alpha / rank) B_c A_c x,     d = softmax(r / temperature),
    r_c = image_weight cos(image, image anchor of c) + (1 - image_weight) cos(text, text anchor of c),
with anchors that are the means of a task's training features; in all other blocks
    y = W x + (alpha / rank) (coefficient sum_c B_c) (coefficient sum_c A_c) x,
the merging of the public code, or with `separate_sums` 0 y = W x + coefficient sum_c (alpha / rank) B_c A_c x.

What stands for parts that this protocol does not have: for CLIP's image and text features the two parts of the backbone's
routing features (vision encoder, language model on the instruction), which D-MoLE's routers use, too; candidate sites of the
vision encoder, where the paper has no LoRA, are merged; the projector does not train. Only tasks learned so far take part in the
softmax; in the public code, the untrained experts of later tasks do, too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from dmole_cli.artifacts.errors import StaleArtifact
from dmole_cli.artifacts.features import read_features
from dmole_cli.artifacts.headers import header_of
from dmole_cli.artifacts.kinds import MEMORY
from dmole_cli.artifacts.memory import read_memory
from dmole_cli.artifacts.run import Run
from dmole_cli.errors import DmoleError
from dmole_cli.methods.base import LoadedContext, Method, Option, Routing, Training

if TYPE_CHECKING:
    import torch
    from torch import nn

    from dmole_cli.experts.expert import Expert
    from dmole_cli.experts.weighting import Part


class HideLlava(Method):
    """Experts of the top layer weighted by similarity to anchors, all others merged."""

    paper = "https://arxiv.org/abs/2503.12941"
    options = {
        "temperature": Option(0.1, "Temperature of the softmax over the tasks' similarities.", gt=0.0),
        "image_weight": Option(0.5, "Weight of the image in a similarity; the text has the rest.", le=1.0),
        "coefficient": Option(1.0, "Merging coefficient of every task (epsilon of the paper)."),
        "expanded_blocks": Option(1.0, "Number of top blocks whose experts are weighted, not merged.", whole=True),
        "separate_sums": Option(
            1.0, "Whether A and B are summed separately (1), or their products (0).", le=1.0, whole=True
        ),
    }
    has_memory = True
    weighted = True

    def remember(self, context: LoadedContext, training: Training) -> dict[str, torch.Tensor]:
        """The task's anchors: the means of the image part and of the text part of its training samples' features."""
        path = context.run.features(context.task)
        ids, features, _ = read_features(path)
        if ids != [sample.sample_id for sample in context.samples]:
            raise StaleArtifact(path, "the task's samples have changed")
        image, text = features.split([part["width"] for part in context.backbone.feature_layout()], dim=1)
        return {"image": image.mean(dim=0), "text": text.mean(dim=0)}

    def active_experts(self, routing: Routing) -> list[tuple[str, ...]]:
        """All tasks trained so far, for every sample."""
        return [tuple(routing.tasks) for _ in routing.losses]

    def weighting(self, run: Run, tasks: Sequence[str]) -> _Anchors:
        """The anchors of the tasks, with the options that the last of them was trained with."""
        paths = [run.memory(task, self.name) for task in tasks]
        header = header_of(paths[-1], MEMORY)
        options = {} if header is None else header.settings["options"]
        return _Anchors(tuple(tasks), [read_memory(path) for path in paths], options)


class _Anchors:
    """The weighting by similarity to anchors.

    Args:
        tasks: trained so far.
        anchors: of each task, `image` [width] and `text` [width].
        options: of the method.
    """

    def __init__(
        self, tasks: tuple[str, ...], anchors: Sequence[Mapping[str, torch.Tensor]], options: Mapping[str, float]
    ) -> None:
        self.tasks, self.anchors, self.options = tasks, anchors, options

    def distances(self, features: torch.Tensor) -> torch.Tensor:
        """1 - r [samples, tasks]: one minus the weighted mean of the cosine similarities of image and text."""
        import torch

        share = self.options["image_weight"]
        columns = []
        for anchor in self.anchors:
            image, text = features.split([len(anchor["image"]), len(anchor["text"])], dim=1)
            similarity = share * _cosine(image, anchor["image"]) + (1 - share) * _cosine(text, anchor["text"])
            columns.append(1 - similarity)
        return torch.stack(columns, dim=1)

    def weights(self, distances: Sequence[float]) -> tuple[float, ...]:
        """d = softmax(r / temperature); a softmax does not depend on the 1 of 1 - r."""
        nearest = min(distances)
        powers = [math.exp((nearest - distance) / self.options["temperature"]) for distance in distances]
        return tuple(power / sum(powers) for power in powers)

    def parts(self, experts: Mapping[str, Expert], model: nn.Module) -> list[Part]:
        """The experts' matrices in the top blocks, each with its task's weight, and the merged ones of all other blocks."""
        from dmole_cli.experts.expert import Expert
        from dmole_cli.experts.weighting import Part

        top = _top_blocks(model, int(self.options["expanded_blocks"]))
        above, below = dict[str, Expert](), dict[str, Expert]()
        for task, expert in experts.items():
            for found, wanted in ((above, True), (below, False)):
                sites = {site: pair for site, pair in expert.sites.items() if site.startswith(top) == wanted}
                found[task] = Expert(sites, expert.scale)
        coefficient = self.options["coefficient"]
        weighted = [Part(expert, task) for task, expert in above.items()]
        if not self.options["separate_sums"]:
            return [*weighted, *(Part(expert, weight=coefficient) for expert in below.values())]
        return [*weighted, Part(_summed(below, coefficient))]


def _cosine(rows: torch.Tensor, anchor: torch.Tensor) -> torch.Tensor:
    """Cosine similarity of each row [rows, width] with an anchor [width]; 0 where one of them is 0, as without an image."""
    from torch.nn import functional as F

    return F.cosine_similarity(rows, anchor[None], dim=1)


def _top_blocks(model: nn.Module, count: int) -> tuple[str, ...]:
    """Beginnings of the paths in the last blocks of the language model."""
    from dmole_cli.backbones.sites import block_stacks

    stacks = block_stacks(model)["language"]
    names = [f"{stack}.{name}." for stack in stacks for name, _ in model.get_submodule(stack).named_children()]
    return tuple(names[len(names) - min(count, len(names)) :])


def _summed(experts: Mapping[str, Expert], coefficient: float) -> Expert:
    """One expert whose A and B are coefficient x the sums of those of all experts at a site, with alpha / rank in B.

    Raises:
        DmoleError: the experts have other sites or ranks.
    """
    import torch

    from dmole_cli.experts.expert import Expert

    shapes = {task: {site: a.shape for site, (a, _) in expert.sites.items()} for task, expert in experts.items()}
    first, *others = experts
    if differing := [task for task in others if shapes[task] != shapes[first]]:
        message = f"the experts of {first} and {differing[0]} have other sites or ranks, so that A and B have no sums"
        raise DmoleError(message, "train both with the same budget, or all tasks with --set separate_sums=0")

    def total(site: str, index: int) -> torch.Tensor:
        """The sum of A (index 0), or of B (1) x alpha / rank."""
        found = [e.sites[site][index] * (e.scale if index else 1.0) for e in experts.values()]
        return coefficient * torch.stack(found).sum(dim=0)

    return Expert({site: (total(site, 0), total(site, 1)) for site in shapes[first]}, 1.0)
