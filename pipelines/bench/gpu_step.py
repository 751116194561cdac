"""On a GPU: training steps of a random 2-billion InternVL in bfloat16; 8 samples of one or four tiles, with 80 tokens of text.

Nine experts of rank 8 on half of the attention projections; each sample uses the new one and an earlier one. A variant runs three
steps, each of which moves its batch to the device; ours are those of one long training run:

- the bare model: forward and backward pass to the inputs of both towers, no experts and no optimiser;
- peft: one LoRA adapter at the new expert's sites, in float32 as peft makes it, and in bfloat16;
- the official recipe: routing features in every step, a voted transfer expert, dropout, checkpointing (`ReferenceStep`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import nullcontext

import torch

from dmole_cli.backbones.checkpointing import activation_checkpointing
from dmole_cli.training.loop import Batch, Observer, Schedule, Trainer
from pipelines.bench._gpu import (
    BATCH,
    Measured,
    all_cores,
    case_of,
    device_for,
    measure,
    routes,
    two_billion,
)
from pipelines.bench._models import RANK, SCALE, attached, twin, with_labels
from pipelines.bench._reference import DROPOUT
from pipelines.bench._stream import TRAIN_SETTINGS
from pipelines.bench._timing import Row, Variant
from pipelines.bench.depth import forced_input_gradients
from pipelines.bench.step import RATE, Case, ReferenceStep

STEPS = 3
# Number of tiles -> rounds, and the targets: over the bare model, over peft, over the official recipe.
SIZES = {1: (5, 1.20, 0.75, 0.60), 4: (4, 1.08, 0.75, 0.65)}
MEMORY = 0.65  # peak over peft's


def compare(*, rounds: int | None = None, tiny: bool = False) -> Iterator[Row]:
    """Time, peak memory and kernels of a step."""
    device = device_for(tiny=tiny)
    if device is None:
        return
    with all_cores(device):
        for tiles, (usual, *targets) in SIZES.items():
            case = case_of(two_billion(device, tiny=tiny), tiles=tiles, tiny=tiny)
            steps = 1 if tiny else STEPS
            found = measure(variants(case, steps), device=device, rounds=rounds or (1 if tiny else usual))
            name = f"gpu step, {BATCH} x {tiles} tile{'s' if tiles > 1 else ''}"
            yield from _ratios(name, found, targets)
            yield from _figures(name, found, case, steps)


def variants(case: Case, steps: int) -> dict[str, Callable[[], Variant]]:
    """Name -> maker of a run of some steps."""
    sets = routes(len(case.batch))
    return {
        "ours": lambda: training_loop(case, sets, steps=steps),
        "ours, no graphs": lambda: training_loop(case, sets, steps=steps, graphs=False),
        "ours, checkpointing": lambda: training_loop(case, sets, steps=steps, checkpointing=True),
        "bare": lambda: bare(case, steps=steps),
        "bare, batch on the device": lambda: bare(case, steps=steps, prepared=True),
        "peft": lambda: peft_lora(case, steps=steps),
        "peft, bfloat16": lambda: peft_lora(case, steps=steps, float32=False),
        "peft, checkpointing": lambda: peft_lora(case, steps=steps, checkpointing=True),
        "official": lambda: repeated(ReferenceStep(case, case.experts(), p=DROPOUT), steps),
    }


class Next(Observer):
    """The next steps of a long training run.

    Args:
        count: number of steps.
    """

    def __init__(self, count: int) -> None:
        self.count = count

    def steps(self, trainer: Trainer) -> range:
        """So many steps."""
        return range(self.count)


def training_loop(
    case: Case, sets: list[tuple[str, ...]], *, steps: int, checkpointing: bool = False, graphs: bool = True
) -> Variant:
    """Steps of one long training run, whose first ones are not measured; gives the loss of the last step.

    The first call computes a few steps without a graph and then captures one, where `graphs` allows it.
    """
    backbone, experts = twin(case.backbone), case.experts()
    used = {name: expert for name, expert in experts.items() if any(name in s for s in sets)}
    trainer = Trainer(
        backbone,
        attached(backbone, used),
        experts[case.newest],
        schedule=Schedule(10**6, RATE, TRAIN_SETTINGS, graphs=graphs),
    )
    batches = itertools.repeat(Batch([str(i) for i in range(len(sets))], sets, case.batch))

    def run() -> float:
        with activation_checkpointing(backbone) if checkpointing else nullcontext():
            trainer.run(batches, Next(steps))
        return trainer.figures[-1].loss

    return run


def bare(case: Case, *, steps: int, prepared: bool = False) -> Variant:
    """Forward and backward passes without experts.

    Args:
        case: its model and batch.
        steps: number of passes.
        prepared: whether the batch is on the device beforehand.
    """
    backbone = case.backbone
    ready = backbone.collate(case.batch, left=False)[0] if prepared else None

    def run() -> None:
        with forced_input_gradients(backbone):
            for _ in range(steps):
                inputs = ready or backbone.collate(case.batch, left=False)[0]
                backbone.answer_loss(inputs).backward()

    return run


def peft_lora(case: Case, *, steps: int, checkpointing: bool = False, float32: bool = True) -> Variant:
    """Training steps of peft's LoRA with one adapter at the sites of the newest expert."""
    from peft import LoraConfig, get_peft_model

    backbone = twin(case.backbone)
    config = LoraConfig(r=RANK, lora_alpha=int(RANK * SCALE), target_modules=case.placed[case.newest])
    model = get_peft_model(backbone.model, config, autocast_adapter_dtype=float32)
    if checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    model.train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=TRAIN_SETTINGS.weight_decay)

    def run() -> float:
        for _ in range(steps):
            loss = model(**with_labels(backbone, case.batch), use_cache=False).loss
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, TRAIN_SETTINGS.clip)
            optimizer.step()
        return loss.item()

    return run


def repeated(step: Variant, steps: int) -> Variant:
    """A step, several times."""

    def run() -> None:
        for _ in range(steps):
            step()

    return run


def _ratios(name: str, found: Measured, targets: list[float]) -> Iterator[Row]:
    over_bare, over_peft, over_official = targets
    yield found.time(f"{name}: time over the bare model's forward and backward", "ours", "bare", over_bare)
    yield found.time(f"{name}: the same with the bare model's batch on the device", "ours", "bare, batch on the device")
    yield found.peak(f"{name}: peak memory over the bare model's", "ours", "bare")
    yield found.time(f"{name}: time over peft's with one adapter", "ours", "peft", over_peft)
    yield found.peak(f"{name}: peak memory over peft's", "ours", "peft", MEMORY)
    yield found.time(f"{name}: time over peft's in bfloat16", "ours", "peft, bfloat16")
    yield found.peak(f"{name}: peak memory over peft's in bfloat16", "ours", "peft, bfloat16")
    words, mine = f"{name} with checkpointing", "ours, checkpointing"
    yield found.time(f"{words}: time over the official recipe's", mine, "official", over_official)
    yield found.peak(f"{words}: peak memory over the official recipe's", mine, "official")
    yield found.time(f"{words}: time over peft's", mine, "peft, checkpointing")
    yield found.peak(f"{words}: peak memory over peft's", mine, "peft, checkpointing")


def _figures(name: str, found: Measured, case: Case, steps: int) -> Iterator[Row]:
    yield found.time(f"{name}: time without CUDA graphs over the bare model's", "ours, no graphs", "bare")
    for variant in ("ours", "ours, no graphs", "ours, checkpointing", "bare", "peft", "official"):
        yield found.milliseconds(f"{name}, {variant}", variant, calls=steps)
        yield found.gibibytes(f"{name}, {variant}", variant)
    tokens = steps * sum(len(sample.tokens) for sample in case.batch)
    yield found.figure(f"{name}: tokens per second", ("ours",), lambda one: tokens / found.median(one))
    yield found.launched(f"{name}: kernels", "ours", of=steps)
    beyond = f"{name}: kernels per routed site beyond the bare model"
    yield found.launched_beyond(beyond, "ours", "bare", of=steps * len(routed_sites(case)))
    for variant in ("ours", "bare"):
        yield found.busy(f"{name}, {variant}", variant)


def routed_sites(case: Case) -> set[str]:
    """The sites with an active expert."""
    active = {name for names in routes(len(case.batch)) for name in names}
    return {site for name in active for site in case.placed[name]}
