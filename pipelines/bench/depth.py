"""One training step with all new experts in the upper half of the language model, on the model of `step`.

Compared with the same step when the inputs of both towers require gradients, as they do after transformers' activation
checkpointing was enabled: the backward pass then runs down to the images, while here it ends at the lowest new expert. Frozen
earlier experts are active at sites of both towers in either variant.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dmole_cli.backbones.backbone import Backbone
from dmole_cli.backbones.sites import find_sites
from pipelines.bench._reference import require_gradients
from pipelines.bench._timing import Row, Variant, counted, interleaved, peak_bytes, timed
from pipelines.bench.step import NEWEST, SETS, Case, case, ours


def upper_half(case: Case) -> Case:
    """The same case with the newest expert on all attention projections of the language model's upper half, and only there."""
    language = [s for s in find_sites(case.backbone.model, "attention") if s.modality == "language"]
    middle = (1 + max(site.block for site in language)) / 2
    return Case(
        case.backbone,
        case.placed | {NEWEST: [site.name for site in language if site.block >= middle]},
        case.batch,
        case.routers,
    )


@contextmanager
def forced_input_gradients(backbone: Backbone) -> Iterator[None]:
    """Inside the block, the embeddings of images and tokens require gradients."""
    towers = (backbone.vision, backbone.language)
    hooks = [tower.get_input_embeddings().register_forward_hook(require_gradients) for tower in towers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def forced(case: Case, step: Variant) -> Variant:
    """The step with input gradients."""

    def run() -> object:
        with forced_input_gradients(case.backbone):
            return step()

    return run


def compare(*, rounds: int | None = None, tiny: bool = False) -> list[Row]:
    """Time and peak memory of a step, without checkpointing in either variant."""
    made = upper_half(case(tiny=tiny))
    ending = ours(made, made.experts(), SETS)
    variants = {"ending": ending, "forced": forced(made, ours(made, made.experts(), SETS))}
    peaks = {name: peak_bytes(function) for name, function in variants.items()}
    times = interleaved(variants, rounds=rounds or (1 if tiny else 7), warm=True)
    name = "new experts in the upper half"
    return [
        timed(f"{name}: time over the step with input gradients forced", times, "ending", "forced", 0.75),
        counted(f"{name}: peak memory over the same", peaks["ending"] / peaks["forced"]),
    ]
