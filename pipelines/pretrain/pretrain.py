"""Pre-train the embedded backbone from random weights: `python pipelines/pretrain/pretrain.py --out backbone/`.

Seeded and resumable (a checkpoint every few minutes in `--work`; start the same command again). Two kinds of phases take turns:

- vision: every patch of a picture names the thing that covers it and its colour; the vision tower alone learns;
- joint: next-token loss on the answers of several shuffled questions about each scene, the patch loss beside it.

Looking is the bottleneck of a model this small, and vision steps are four times cheaper per picture, hence the second one.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from boxes import Coordinates, overlap
from build import build_model, build_processor, train_tokenizer
from questions import FAMILIES, box_text, questions
from safetensors.torch import load_file, save_file
from scenes import CHARACTERS, COLORS, GRID, SHAPES, draw_scene, kinds, patch_labels
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

QUESTIONS = 5


@dataclass(frozen=True)
class Phase:
    """A stretch of training: `scenes` gives (from step, scenes of a batch); the rate falls to zero after `decay_from`;
    `emphasis` is the further weight of shapes and characters in the patch loss, `regular`
    the share of scenes on a grid, `patch_weight` the weight of the patch loss beside the answers', `weights` the weights of
    question families that differ from `FAMILIES`, `blur` the standard deviation, in coordinate steps, of the soft targets of boxes."""

    kind: str
    steps: int
    rate: float
    scenes: tuple[tuple[int, int], ...]
    decay_from: float = 1.0
    emphasis: float = 0.0
    regular: float = 0.0
    patch_weight: float = 0.15
    weights: tuple[tuple[str, float], ...] = ()
    blur: float = 0.0

    def batch(self, step: int) -> int:
        """Scenes of a step."""
        return [count for first, count in self.scenes if step >= first][-1]

    def rate_at(self, step: int) -> float:
        """Learning rate of a step: a rise over 50 steps, constant, then linear to zero."""
        knee = int(self.steps * self.decay_from)
        fall = 1.0 if step < knee else (self.steps - step) / max(1, self.steps - knee)
        return self.rate * min(1.0, (step + 1) / 50) * fall


PHASES = {
    1: Phase("vision", 700, 2e-3, ((0, 128),)),
    2: Phase("joint", 1250, 2e-3, ((0, 48), (1000, 32))),
    3: Phase("vision", 750, 1e-3, ((0, 128),), emphasis=1.0),
    4: Phase("joint", 500, 1e-3, ((0, 32),), emphasis=1.0),
    5: Phase("vision", 300, 1e-3, ((0, 128),), emphasis=1.0, regular=0.6),
    6: Phase("joint", 900, 1.5e-3, ((0, 32),), decay_from=0.6, emphasis=1.0, regular=0.6, patch_weight=0.4),
    7: Phase("joint", 1400, 1.5e-3, ((0, 32),), decay_from=0.5, emphasis=1.0, regular=0.5, patch_weight=0.3),
    8: Phase("joint", 250, 1.5e-3, ((0, 32),), emphasis=1.0, regular=0.4, patch_weight=0.3),
    9: Phase(
        "joint", 4000, 1.5e-3, ((0, 32),), decay_from=0.5, emphasis=1.0, regular=0.3, patch_weight=0.3, blur=1.5,
        weights=(("box", 3.5), ("at_box", 1.0), ("read", 2.6), ("options", 1.8), ("presence", 1.4), ("color", 1.4), ("background", 0.2)),
    ),
}  # fmt: skip
LONGEST = 124  # tokens of a sequence; later questions are dropped, so that little of a batch is padding
HELD_OUT_SEED = 10**9  # scenes that are only ever scored


class PatchHead(nn.Module):
    """Linear classifiers of a patch's kind and colour on the vision tower's hidden states [*, tokens, width]."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.small = len(SHAPES) + len(CHARACTERS)
        self.norm, self.kind, self.color = nn.LayerNorm(width), nn.Linear(width, classes), nn.Linear(width, len(COLORS))

    def loss(self, hidden: torch.Tensor, kind: torch.Tensor, color: torch.Tensor, emphasis: float) -> torch.Tensor:
        """Mean cross-entropy of both; background patches at a fifth of the weight, shapes and characters at 1 + emphasis."""
        states = self.norm(hidden).flatten(0, 1)
        kind, color = kind.flatten(), color.flatten()
        each = F.cross_entropy(self.kind(states), kind, reduction="none")
        weight = torch.where(kind > 0, 1.0, 0.2) + emphasis * ((kind > 0) & (kind <= self.small)).float()
        loss = (each * weight).sum() / weight.sum()
        if (color >= 0).any():
            loss = loss + F.cross_entropy(self.color(states), color, ignore_index=-1)
        return loss


def corpus(count: int) -> list[str]:
    """Texts for the tokenizer: questions and answers of scenes, and every coordinate."""
    rng = np.random.default_rng(7)
    lines = []
    for _ in range(count):
        for _, question, answer in questions(draw_scene(rng), rng, count=QUESTIONS):
            lines += [question, answer]
    boxes = [box_text((v, v, v, v)) for v in range(0, 73)]
    return lines + boxes * (count // 20)


def images_of(scenes: list) -> torch.Tensor:
    """Pixels as the processor gives them, [scenes, 3, side, side] in -1..1."""
    pixels = np.stack([np.asarray(s.image, dtype=np.float32) for s in scenes])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1.0


class Batches:
    """Seeded batches: batch `step` is the same whenever and wherever it is drawn."""

    def __init__(self, tokenizer, seed: int) -> None:
        self.tokenizer, self.seed = tokenizer, seed
        self.kind_index = {name: i for i, name in enumerate(kinds())}
        ids = tokenizer.convert_tokens_to_ids
        self.user, self.assistant, self.end, self.image, self.pad = (
            ids(t) for t in ("<user>", "<assistant>", "<end>", "<image>", "<pad>")
        )

    def scenes(self, step: int, count: int, phase: int):
        """Random state, scenes, and their patch labels of one step."""
        rng = np.random.default_rng((self.seed, phase, step))
        regular = PHASES[phase].regular if phase in PHASES and step < HELD_OUT_SEED else 0.0
        drawn = [draw_scene(rng, regular=regular) for _ in range(count)]
        labels = [patch_labels(s, self.kind_index) for s in drawn]
        kind = torch.from_numpy(np.stack([a for a, _ in labels]))
        color = torch.from_numpy(np.stack([b for _, b in labels]))
        return rng, drawn, kind, color

    def sequence(self, asked: list[tuple[str, str, str]]) -> tuple[list[int], list[int]]:
        """Tokens and labels (-100 outside the answers) of one scene's questions."""
        tokens: list[int] = []
        labels: list[int] = []
        for turn, (_, question, answer) in enumerate(asked):
            image = [self.image] * GRID**2 if turn == 0 else []
            prompt = [self.user, *image, *self.tokenizer(question)["input_ids"], self.assistant]
            reply = [*self.tokenizer(answer)["input_ids"], self.end]
            if turn and len(tokens) + len(prompt) + len(reply) > LONGEST:
                break
            tokens += prompt + reply
            labels += [-100] * len(prompt) + reply
        return tokens, labels

    def collate(self, rows: list[tuple[list[int], list[int]]]) -> dict[str, torch.Tensor]:
        """Pad on the right."""
        longest = max(len(t) for t, _ in rows)
        ids = torch.full((len(rows), longest), self.pad)
        labels = torch.full((len(rows), longest), -100)
        for i, (t, y) in enumerate(rows):
            ids[i, : len(t)], labels[i, : len(y)] = torch.tensor(t), torch.tensor(y)
        return {"input_ids": ids, "attention_mask": (ids != self.pad).long(), "labels": labels}


class Steps(Dataset):
    """The batches of one phase by step number, drawn in a worker process while the model computes."""

    def __init__(self, batches: Batches, *, phase: int, end: int) -> None:
        self.batches, self.phase, self.end = batches, phase, end

    def __len__(self) -> int:
        return self.end

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        rng, drawn, kind, color = self.batches.scenes(step, PHASES[self.phase].batch(step), self.phase)
        if PHASES[self.phase].kind == "vision":
            return {"pixels": images_of(drawn), "kind": kind, "color": color}
        weights = dict(PHASES[self.phase].weights)
        asked = [(i, questions(s, rng, count=QUESTIONS, weights_of=weights)) for i, s in enumerate(drawn)]
        asked = [(i, q) for i, q in asked if q]
        keep = [i for i, _ in asked]
        batch = self.batches.collate([self.batches.sequence(q) for _, q in asked])
        return {**batch, "pixels": images_of([drawn[i] for i in keep]), "kind": kind[keep], "color": color[keep]}

    def loader(self, first: int) -> DataLoader:
        """Batches from step `first` on, in order."""
        return DataLoader(self, batch_size=None, sampler=range(first, self.end), num_workers=1, prefetch_factor=6)


def answer_logits(model, batch: dict[str, torch.Tensor], pixels: torch.Tensor):
    """(logits at the positions that predict an answer token, those tokens, the vision tower's last hidden state)."""
    vision = model.model.vision_tower(pixel_values=pixels, output_hidden_states=True).hidden_states[-1]
    projected = model.model.multi_modal_projector(vision)
    embeds = model.get_input_embeddings()(batch["input_ids"])
    where = batch["input_ids"] == model.config.image_token_id
    embeds = embeds.masked_scatter(where[..., None], projected.to(embeds.dtype))
    hidden = model.model.language_model(inputs_embeds=embeds, attention_mask=batch["attention_mask"], use_cache=False)
    target = batch["labels"][:, 1:]
    keep = target != -100
    return model.lm_head(hidden.last_hidden_state[:, :-1][keep]), target[keep], vision


def score(model, batches: Batches, scenes: int = 240) -> dict[str, float]:
    """Share of held-out questions, asked alone, whose answer tokens are all the most likely ones, by family.

    A box counts when its intersection over union with the right one is at least 0.5.
    """
    model.eval()
    right: dict[str, list[float]] = {name: [] for name in FAMILIES}
    coordinates = Coordinates(batches.tokenizer, 0.0)
    with torch.no_grad():
        for chunk in range(scenes // 60):
            rng, drawn, _, _ = batches.scenes(HELD_OUT_SEED + chunk, 60, phase=3)
            asked = [(i, q) for i, s in enumerate(drawn) for q in questions(s, rng, count=3)]
            batch = batches.collate([batches.sequence([q]) for _, q in asked])
            pixels = images_of([drawn[i] for i, _ in asked])
            logits, target, _ = answer_logits(model, batch, pixels)
            said = logits.argmax(-1)
            start = 0
            for row, (_, (family, _, _)) in enumerate(asked):
                length = int((batch["labels"][row] != -100).sum())
                reply, truth = said[start : start + length].tolist(), target[start : start + length].tolist()
                if family == "box":
                    right[family].append(float(overlap(coordinates.box(reply), coordinates.box(truth)) >= 0.5))
                else:
                    right[family].append(float(reply == truth))
                start += length
    model.train()
    return {name: round(float(np.mean(v)), 3) for name, v in right.items() if v}


def optimizers(model, head: PatchHead, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the towers, AdamW for embeddings, norms, biases and the patch head."""
    matrices, rest = [], list(head.parameters())
    for name, p in model.named_parameters():
        (matrices if p.ndim == 2 and "layers" in name else rest).append(p)
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


def set_rate(opts: list[torch.optim.Optimizer], rate: float) -> None:
    """The learning rate of every group, now."""
    for group in (g for o in opts for g in o.param_groups):
        group["lr"] = rate


def save_state(path: Path, model, head, opts, step: int, phase: int) -> None:
    """Checkpoint as safetensors (optimizer moments included) beside a JSON of the step; renamed when complete."""
    tensors = {f"model.{n}": p.detach().contiguous().clone() for n, p in model.named_parameters()}
    tensors |= {f"head.{n}": p.detach().clone() for n, p in head.named_parameters()}
    for i, opt in enumerate(opts):
        for j, state in opt.state_dict()["state"].items():
            tensors |= {f"opt{i}.{j}.{k}": v.clone().contiguous() for k, v in state.items() if torch.is_tensor(v)}
    temporary = path.with_suffix(".tmp")
    save_file(tensors, temporary, metadata={"step": str(step), "phase": str(phase)})
    temporary.replace(path)


def load_state(path: Path, model, head, opts) -> tuple[int, int]:
    """Restore a checkpoint; gives (step, phase)."""
    from safetensors import safe_open

    with safe_open(path, "pt") as f:
        meta = f.metadata()
    tensors = load_file(path)
    with torch.no_grad():
        for prefix, module in (("model.", model), ("head.", head)):
            for n, p in module.named_parameters():
                p.copy_(tensors[prefix + n])
    for i, opt in enumerate(opts):
        state = opt.state_dict()
        for name in (n for n in tensors if n.startswith(f"opt{i}.")):
            _, j, k = name.split(".", 2)
            state["state"].setdefault(int(j), {})[k] = tensors[name]
        opt.load_state_dict(state)
    return int(meta["step"]), int(meta["phase"])


def main() -> None:
    """Pre-train, then write the model folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the finished backbone")
    parser.add_argument("--work", type=Path, default=Path("pretrain-work"), help="checkpoints and log")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--export-only", action="store_true", help="score the last checkpoint, write --out from it, and stop"
    )
    parser.add_argument(
        "--warm-start", type=Path, help="finished backbone whose weights to start from (not its optimizers)"
    )
    parser.add_argument("--phase", type=int, default=1, help="first phase, with --warm-start")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(options.seed)
    torch.set_flush_denormal(True)
    tokenizer = train_tokenizer(corpus(6000))
    processor = build_processor(tokenizer)
    model = build_model(tokenizer, seed=options.seed).train()
    head = PatchHead(model.config.vision_config.hidden_size, len(kinds()))
    opts = optimizers(model, head, PHASES[1].rate)
    batches = Batches(tokenizer, options.seed)
    checkpoint = options.work / "state.safetensors"
    if options.warm_start and not checkpoint.exists():
        model.load_state_dict(type(model).from_pretrained(options.warm_start, dtype=torch.float32).state_dict())
    step, phase = load_state(checkpoint, model, head, opts) if checkpoint.exists() else (0, options.phase)
    log = (options.work / "log.jsonl").open("a")

    def say(**row) -> None:
        print(json.dumps(row), file=log, flush=True)
        print(json.dumps(row), file=sys.stderr, flush=True)

    if not options.export_only:
        for number in range(phase, max(PHASES) + 1):
            run_phase(number, model, head, opts, batches, checkpoint, step if number == phase else 0, say)
    say(final=score(model, batches, scenes=1200))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.half().save_pretrained(options.out)
    processor.save_pretrained(options.out)


def run_phase(number, model, head, opts, batches, checkpoint, step, say) -> None:
    """One phase from `step` on; checkpoints on the way, and one at its end that names the next phase."""
    phase = PHASES[number]
    started, first, mean = time.time(), step, 0.0
    soft = Coordinates(batches.tokenizer, phase.blur)
    for batch in Steps(batches, phase=number, end=phase.steps).loader(step):
        set_rate(opts, phase.rate_at(step))
        if phase.kind == "vision":
            vision = model.model.vision_tower(pixel_values=batch["pixels"], output_hidden_states=True).hidden_states[-1]
            loss = patch = head.loss(vision, batch["kind"], batch["color"], phase.emphasis)
            loss.backward()
        else:
            logits, target, vision = answer_logits(model, batch, batch["pixels"])
            loss = soft.loss(logits, target) if phase.blur else F.cross_entropy(logits, target)
            patch = head.loss(vision, batch["kind"], batch["color"], phase.emphasis)
            (loss + phase.patch_weight * patch).backward()
        if not math.isfinite(loss.item()):
            raise SystemExit(f"loss is not finite at step {step} of phase {number}")
        update(model, opts)
        step += 1
        mean = loss.item() if mean == 0 else 0.98 * mean + 0.02 * loss.item()
        if step % 50 == 0:
            with torch.no_grad():
                seen = batch["kind"] > 0
                hit = (head.kind(head.norm(vision)).argmax(-1) == batch["kind"])[seen].float().mean()
            per_step = (time.time() - started) / (step - first)
            say(phase=number, step=step, loss=round(mean, 3), kind=round(hit.item(), 3), per_step=round(per_step, 3))
        if step % 250 == 0:
            save_state(checkpoint, model, head, opts, step, number)
            if phase.kind == "joint":
                say(phase=number, step=step, held_out=score(model, batches))
    save_state(checkpoint, model, head, opts, 0, number + 1)


def update(model, opts) -> None:
    """Clip, step, clear."""
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for opt in opts:
        opt.step()
        opt.zero_grad(set_to_none=True)


if __name__ == "__main__":
    main()
