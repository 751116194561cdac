"""Pre-train the embedded backbone from random weights: `python pipelines/pretrain/pretrain.py --out backbone/`.

Seeded and resumable: a checkpoint is written every few minutes to `--work`, and the same command continues from it. Two kinds
of phases alternate (see phases.py):

- vision: every patch of an image is classified by the object that covers it and by its color; only the vision tower is trained;
- joint: next-token loss on the answers to several questions about each scene, plus the patch loss; the whole model is trained.

Perception is the bottleneck of a model this small, and a vision step costs a quarter of a joint step per image: hence the first.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from batches import HELD_OUT_SEED, Batches, Steps, corpus, images_of
from boxes import Coordinates, overlap
from build import build_model, build_processor, train_tokenizer
from glyphs import CHARACTERS
from phases import PHASES
from questions import FAMILIES, questions
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from scenes import kinds
from shapes import COLORS, SHAPES
from torch import nn
from torch.nn import functional as F


class PatchHead(nn.Module):
    """Linear classifiers of a patch's class and color on the vision tower's hidden states [batch, patches, width]."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.small = len(SHAPES) + len(CHARACTERS)
        self.norm, self.kind, self.color = nn.LayerNorm(width), nn.Linear(width, classes), nn.Linear(width, len(COLORS))

    def loss(self, hidden: torch.Tensor, kind: torch.Tensor, color: torch.Tensor, emphasis: float) -> torch.Tensor:
        """Sum of the mean cross-entropies of class and color [batch, patches].

        In the first, background patches have weight 0.2, shapes and characters 1 + emphasis; color -1 is ignored.
        """
        states = self.norm(hidden).flatten(0, 1)
        kind, color = kind.flatten(), color.flatten()
        each = F.cross_entropy(self.kind(states), kind, reduction="none")
        weight = torch.where(kind > 0, 1.0, 0.2) + emphasis * ((kind > 0) & (kind <= self.small)).float()
        loss = (each * weight).sum() / weight.sum()
        if (color >= 0).any():
            loss = loss + F.cross_entropy(self.color(states), color, ignore_index=-1)
        return loss


def vision_states(model, pixels: torch.Tensor) -> torch.Tensor:
    """Last hidden states of the vision tower, [batch, patches, width]."""
    return model.model.vision_tower(pixel_values=pixels, output_hidden_states=True).hidden_states[-1]


def answer_logits(model, batch: dict[str, torch.Tensor], pixels: torch.Tensor):
    """(logits [answer tokens, vocabulary], target tokens [answer tokens], `vision_states`)."""
    vision = vision_states(model, pixels)
    projected = model.model.multi_modal_projector(vision)
    embeds = model.get_input_embeddings()(batch["input_ids"])
    where = batch["input_ids"] == model.config.image_token_id
    embeds = embeds.masked_scatter(where[..., None], projected.to(embeds.dtype))
    hidden = model.model.language_model(inputs_embeds=embeds, attention_mask=batch["attention_mask"], use_cache=False)
    target = batch["labels"][:, 1:]
    answered = target != -100
    return model.lm_head(hidden.last_hidden_state[:, :-1][answered]), target[answered], vision


def score(model, batches: Batches, scenes: int = 240) -> dict[str, float]:
    """Share of held-out questions, one per sequence, whose answer tokens are all predicted correctly, by family.

    A box is correct if its intersection over union with the reference is at least 0.5.
    """
    model.eval()
    correct: dict[str, list[float]] = {name: [] for name in FAMILIES}
    coordinates = Coordinates(batches.tokenizer, 0.0)
    with torch.no_grad():
        for chunk in range(scenes // 60):
            rng, drawn, _, _ = batches.scenes(HELD_OUT_SEED + chunk, 60, phase=3)
            turns = [(i, q) for i, s in enumerate(drawn) for q in questions(s, rng, count=3)]
            batch = batches.collate([batches.sequence([q]) for _, q in turns])
            logits, target, _ = answer_logits(model, batch, images_of([drawn[i] for i, _ in turns]))
            predicted = logits.argmax(-1)
            start = 0
            for row, (_, (family, _, _)) in enumerate(turns):
                end = start + int((batch["labels"][row] != -100).sum())
                answer, reference = predicted[start:end].tolist(), target[start:end].tolist()
                if family == "box":
                    correct[family].append(float(overlap(coordinates.box(answer), coordinates.box(reference)) >= 0.5))
                else:
                    correct[family].append(float(answer == reference))
                start = end
    model.train()
    return {name: round(float(np.mean(v)), 3) for name, v in correct.items() if v}


def optimizers(model, head: PatchHead, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the weight matrices of the layers, AdamW for embeddings, norms, biases and the patch head."""
    matrices, rest = [], list(head.parameters())
    for name, p in model.named_parameters():
        (matrices if p.ndim == 2 and "layers" in name else rest).append(p)
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


@dataclass
class Trainer:
    """Everything that training changes or needs.

    Attributes:
        model: the backbone.
        head: the patch classifiers.
        batches: the training data.
        checkpoint: file to resume from.
        log: called with the values to report.
        optimizers: of model and head.
    """

    model: nn.Module
    head: PatchHead
    batches: Batches
    checkpoint: Path
    log: Callable[..., None]
    optimizers: list[torch.optim.Optimizer] = field(init=False)

    def __post_init__(self) -> None:
        self.optimizers = optimizers(self.model, self.head, PHASES[1].rate)

    def run_phase(self, number: int, step: int = 0) -> None:
        """Run a phase from `step` on; the checkpoint at its end names the next phase."""
        phase = PHASES[number]
        started, first, mean = time.time(), step, 0.0
        soft = Coordinates(self.batches.tokenizer, phase.blur)
        for batch in Steps(self.batches, phase=number, end=phase.steps).loader(step):
            for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
                group["lr"] = phase.rate_at(step)
            if phase.kind == "vision":
                vision = vision_states(self.model, batch["pixels"])
                loss = total = self.head.loss(vision, batch["kind"], batch["color"], phase.emphasis)
            else:
                logits, target, vision = answer_logits(self.model, batch, batch["pixels"])
                loss = soft.loss(logits, target) if phase.blur else F.cross_entropy(logits, target)
                patch = self.head.loss(vision, batch["kind"], batch["color"], phase.emphasis)
                total = loss + phase.patch_weight * patch
            total.backward()
            if not math.isfinite(loss.item()):
                raise SystemExit(f"loss is not finite at step {step} of phase {number}")
            self._update()
            step += 1
            mean = loss.item() if mean == 0 else 0.98 * mean + 0.02 * loss.item()
            if step % 50 == 0:
                accuracy = self._patch_accuracy(vision, batch["kind"])
                seconds = (time.time() - started) / (step - first)
                self.log(phase=number, step=step, loss=round(mean, 3), kind=accuracy, per_step=round(seconds, 3))
            if step % 250 == 0:
                self.save(step, number)
                if phase.kind == "joint":
                    self.log(phase=number, step=step, held_out=score(self.model, self.batches))
        self.save(0, number + 1)

    def _update(self) -> None:
        """Clip the gradients, step, reset the gradients."""
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def _patch_accuracy(self, vision: torch.Tensor, kind: torch.Tensor) -> float:
        """Share of the covered patches whose class is predicted correctly."""
        predicted = self.head.kind(self.head.norm(vision)).argmax(-1)
        return round((predicted == kind)[kind > 0].float().mean().item(), 3)

    def save(self, step: int, phase: int) -> None:
        """Write the checkpoint as safetensors, optimizer moments included; it is renamed once it is complete."""
        tensors = {f"model.{n}": p.detach().contiguous().clone() for n, p in self.model.named_parameters()}
        tensors |= {f"head.{n}": p.detach().clone() for n, p in self.head.named_parameters()}
        for i, optimizer in enumerate(self.optimizers):
            for j, state in optimizer.state_dict()["state"].items():
                tensors |= {f"opt{i}.{j}.{k}": v.clone().contiguous() for k, v in state.items() if torch.is_tensor(v)}
        temporary = self.checkpoint.with_suffix(".tmp")
        save_file(tensors, temporary, metadata={"step": str(step), "phase": str(phase)})
        temporary.replace(self.checkpoint)

    def load(self) -> tuple[int, int]:
        """Restore the checkpoint; returns (step, phase)."""
        with safe_open(self.checkpoint, "pt") as file:
            metadata = file.metadata()
        tensors = load_file(self.checkpoint)
        with torch.no_grad():
            for prefix, module in (("model.", self.model), ("head.", self.head)):
                for name, parameter in module.named_parameters():
                    parameter.copy_(tensors[prefix + name])
        for i, optimizer in enumerate(self.optimizers):
            state = optimizer.state_dict()
            for name in (n for n in tensors if n.startswith(f"opt{i}.")):
                _, j, key = name.split(".", 2)
                state["state"].setdefault(int(j), {})[key] = tensors[name]
            optimizer.load_state_dict(state)
        return int(metadata["step"]), int(metadata["phase"])


def main() -> None:
    """Pre-train, then write the model folder."""
    options = _options()
    options.work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(options.seed)
    torch.set_flush_denormal(True)
    tokenizer = train_tokenizer(corpus(6000))
    processor = build_processor(tokenizer)
    model = build_model(tokenizer, seed=options.seed).train()
    head = PatchHead(model.config.vision_config.hidden_size, len(kinds()))
    file = (options.work / "log.jsonl").open("a")

    def log(**row) -> None:
        print(json.dumps(row), file=file, flush=True)
        print(json.dumps(row), file=sys.stderr, flush=True)

    trainer = Trainer(model, head, Batches(tokenizer, options.seed), options.work / "state.safetensors", log)
    resumed = trainer.checkpoint.exists()
    if options.warm_start and not resumed:
        model.load_state_dict(type(model).from_pretrained(options.warm_start, dtype=torch.float32).state_dict())
    step, phase = trainer.load() if resumed else (0, options.phase)
    if not options.export_only:
        for number in range(phase, max(PHASES) + 1):
            trainer.run_phase(number, step if number == phase else 0)
    log(final=score(model, trainer.batches, scenes=1200))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.half().save_pretrained(options.out)
    processor.save_pretrained(options.out)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="output folder of the backbone")
    parser.add_argument("--work", type=Path, default=Path("pretrain-work"), help="folder of checkpoint and log")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--export-only", action="store_true", help="score the last checkpoint and export it to --out")
    parser.add_argument(
        "--warm-start", type=Path, help="backbone whose weights to start from (without optimizer state)"
    )
    parser.add_argument("--phase", type=int, default=1, help="first phase, with --warm-start")
    return parser.parse_args()


if __name__ == "__main__":
    main()
