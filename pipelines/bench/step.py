"""One training step of the fifth task on a vision-language model of 47 million parameters: 2 samples of 2 tiles and 48 tokens.

Compared with the reference, which computes routing features in every step, lets the batch vote, runs the looped layer with a
dropout mask per expert, enables transformers' activation checkpointing with gradients of both towers' inputs, and computes the
logits of all tokens. The other side is the loop of `train-task`: routes known beforehand, a set of experts per sample, activation
checkpointing of the blocks. Experts have the reference's budget: half of the attention projections.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field

import torch

from dmole_cli.backbones.backbone import Backbone, Encoded
from dmole_cli.backbones.checkpointing import activation_checkpointing
from dmole_cli.backbones.sites import find_sites
from dmole_cli.experts.expert import Expert
from dmole_cli.routing.autoencoder import Autoencoder
from dmole_cli.training.loop import Batch, Observer, Schedule, train_expert
from pipelines.bench._models import (
    attached,
    half_of,
    random_expert,
    random_samples,
    twin,
    vision_language,
    with_labels,
)
from pipelines.bench._reference import DROPOUT, looped_experts, require_gradients, voted
from pipelines.bench._stream import TRAIN_SETTINGS
from pipelines.bench._timing import Row, Variant, counted, interleaved, peak_bytes, timed

TASKS = ["1", "2", "3", "4", "5"]
NEWEST, EARLIER = TASKS[-1], TASKS[:-1]
SETS = [(NEWEST, "2"), (NEWEST, "4")]  # the reference uses one of them for both samples
FULL = {"vision": (8, 256), "language": (8, 512), "words": 16_000, "side": 224}
TINY = {"vision": (2, 16), "language": (2, 32), "words": 40, "side": 28}
RATE = 1e-4


@dataclass
class Case:
    """A model, the experts of five tasks, and a batch of the fifth.

    Attributes:
        backbone: random weights.
        placed: task -> sites of its expert, in stream order; the last one trains.
        batch: encoded samples.
        routers: of the earlier tasks.
    """

    backbone: Backbone
    placed: dict[str, list[str]]
    batch: list[Encoded]
    routers: dict[str, Autoencoder] = field(default_factory=dict)

    @property
    def newest(self) -> str:
        """The task whose expert trains."""
        return list(self.placed)[-1]

    def experts(self) -> dict[str, Expert]:
        """New copies, because a step changes the newest."""
        return {
            task: random_expert(self.backbone.model, sites, seed=i, trainable=task == self.newest)
            for i, (task, sites) in enumerate(self.placed.items())
        }


def case(*, tiny: bool = False) -> Case:
    """A case with random weights, experts, routers and samples."""
    torch.manual_seed(0)
    backbone = vision_language(**(TINY if tiny else FULL))
    sites = [site.name for site in find_sites(backbone.model, "attention")]
    batch = random_samples(backbone, 2, text=8 if tiny else 40, answer=3 if tiny else 8, tiles=2)
    width = sum(part["width"] for part in backbone.feature_layout())
    routers = {task: Autoencoder(width).requires_grad_(False) for task in EARLIER}
    return Case(backbone, {t: half_of(sites, seed=i) for i, t in enumerate(TASKS)}, batch, routers)


def ours(
    case: Case,
    experts: dict[str, Expert],
    sets: list[tuple[str, ...]],
    *,
    checkpointing: bool = False,
    steps: int = 1,
    observer: Observer | None = None,
) -> Variant:
    """A run of `train_expert`, of one step or several with the same batch; gives the loss of the last step."""
    backbone, batch = case.backbone, case.batch
    used = {
        name: expert for name, expert in experts.items() if any(name in s for s in sets)
    }  # `train-task` loads no others
    ids = [str(i) for i in range(len(batch))]

    def run() -> float:
        routed = attached(backbone, used)
        try:
            with activation_checkpointing(backbone) if checkpointing else nullcontext():
                figures = train_expert(
                    backbone,
                    routed,
                    experts[case.newest],
                    [Batch(ids, sets, batch)] * steps,
                    schedule=Schedule(steps, RATE, TRAIN_SETTINGS),
                    observer=observer,
                )
        finally:
            routed.close()
        return figures[-1].loss

    return run


class ReferenceStep:
    """A step of the reference; a callable that gives the loss.

    Args:
        case: its model's modules are copied, because not every change made here can be undone.
        experts: of all tasks.
        p: dropout.
        transfer: task of the transfer expert; None to choose it by the routers.
    """

    def __init__(self, case: Case, experts: dict[str, Expert], *, p: float, transfer: str | None = None) -> None:
        self.case, self.experts, self.p, self.transfer = case, experts, p, transfer
        self.backbone = twin(case.backbone)
        self.parameters = list(experts[case.newest].parameters())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=RATE, weight_decay=TRAIN_SETTINGS.weight_decay)
        model = self.backbone.model
        model.activation_checkpointing_enable()
        # On each tower, whether or not the line above has registered such hooks.
        for tower in (self.backbone.vision, self.backbone.language):
            tower.get_input_embeddings().register_forward_hook(require_gradients)

    def __call__(self) -> float:
        """Train one step."""
        backbone, batch = self.backbone, self.case.batch
        votes = voted(backbone, batch, self.case.routers, [1e9] * len(self.case.routers))
        active = [self.case.newest, *([self.transfer] if self.transfer else votes)]
        inputs = with_labels(backbone, batch)
        backbone.model.train()
        with looped_experts(backbone.model, self.experts, active, p=self.p):
            loss = backbone.model(**inputs, use_cache=False).loss
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, TRAIN_SETTINGS.clip)
        self.optimizer.step()
        backbone.model.eval()
        return loss.item()


def compare(*, rounds: int | None = None, tiny: bool = False) -> list[Row]:
    """Time and peak memory of a step."""
    made = case(tiny=tiny)
    variants = {
        "reference": ReferenceStep(made, made.experts(), p=DROPOUT),
        "without dropout": ReferenceStep(made, made.experts(), p=0.0),
        "ours": ours(made, made.experts(), SETS, checkpointing=True),
        "without checkpointing": ours(made, made.experts(), SETS),
    }
    peaks = {name: peak_bytes(function) for name, function in variants.items()}
    times = interleaved(variants, rounds=rounds or (1 if tiny else 5), warm=True)
    memory = {name: peak / peaks["reference"] for name, peak in peaks.items()}
    free = "without checkpointing"
    return [
        timed("training step, same checkpointing: time over the reference's", times, "ours", "reference", 0.65),
        timed("training step: time over the reference's without dropout", times, "ours", "without dropout", 0.80),
        counted("training step: peak memory over the reference's", memory["ours"], 0.50),
        timed("training step without checkpointing: time over the reference's", times, free, "reference"),
        counted("training step without checkpointing: peak memory over the reference's", memory[free]),
    ]
