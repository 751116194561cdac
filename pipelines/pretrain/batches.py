"""Training data: the tokenizer's corpus, and seeded batches of scenes with questions, answers and patch labels."""

from __future__ import annotations

import numpy as np
import torch
from phases import PHASES
from phrases import box_text
from questions import questions
from scenes import GRID, Scene, draw_scene, kinds, patch_labels
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

QUESTIONS = 5
LONGEST = 124  # tokens per sequence; further questions are dropped, so that batches contain little padding
HELD_OUT_SEED = 10**9  # scenes from this step on are used for scoring only


def corpus(count: int) -> list[str]:
    """Texts to train the tokenizer on: questions and answers of `count` scenes, and every coordinate."""
    rng = np.random.default_rng(7)
    lines = []
    for _ in range(count):
        for _, question, answer in questions(draw_scene(rng), rng, count=QUESTIONS):
            lines += [question, answer]
    boxes = [box_text((v, v, v, v)) for v in range(0, 73)]
    return lines + boxes * (count // 20)


def images_of(scenes: list[Scene]) -> torch.Tensor:
    """Pixels as the processor computes them, [scenes, 3, side, side] in -1..1."""
    pixels = np.stack([np.asarray(s.image, dtype=np.float32) for s in scenes])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1.0


class Batches:
    """Seeded batches: a batch depends on the seed, the phase and the step only."""

    def __init__(self, tokenizer, seed: int) -> None:
        self.tokenizer, self.seed = tokenizer, seed
        self.kind_index = {name: i for i, name in enumerate(kinds())}
        ids = tokenizer.convert_tokens_to_ids
        self.user, self.assistant, self.end, self.image, self.pad = (
            ids(t) for t in ("<user>", "<assistant>", "<end>", "<image>", "<pad>")
        )

    def scenes(self, step: int, count: int, phase: int):
        """(random generator, scenes, class and color index [scenes, patches] of every patch) of one step."""
        rng = np.random.default_rng((self.seed, phase, step))
        regular = PHASES[phase].regular if phase in PHASES and step < HELD_OUT_SEED else 0.0
        drawn = [draw_scene(rng, regular=regular) for _ in range(count)]
        labels = [patch_labels(s, self.kind_index) for s in drawn]
        kind = torch.from_numpy(np.stack([a for a, _ in labels]))
        color = torch.from_numpy(np.stack([b for _, b in labels]))
        return rng, drawn, kind, color

    def sequence(self, turns: list[tuple[str, str, str]]) -> tuple[list[int], list[int]]:
        """Tokens and labels (-100 outside the answers) of the (family, question, answer) of one scene."""
        tokens: list[int] = []
        labels: list[int] = []
        for turn, (_, question, answer) in enumerate(turns):
            image = [self.image] * GRID**2 if turn == 0 else []
            prompt = [self.user, *image, *self.tokenizer(question)["input_ids"], self.assistant]
            reply = [*self.tokenizer(answer)["input_ids"], self.end]
            if turn and len(tokens) + len(prompt) + len(reply) > LONGEST:
                break
            tokens += prompt + reply
            labels += [-100] * len(prompt) + reply
        return tokens, labels

    def collate(self, rows: list[tuple[list[int], list[int]]]) -> dict[str, torch.Tensor]:
        """Sequences as a batch, padded on the right."""
        ids = pad_sequence([torch.tensor(t) for t, _ in rows], batch_first=True, padding_value=self.pad)
        labels = pad_sequence([torch.tensor(y) for _, y in rows], batch_first=True, padding_value=-100)
        return {"input_ids": ids, "attention_mask": (ids != self.pad).long(), "labels": labels}


class Steps(Dataset):
    """The batches of a phase by step; a worker process draws them while the model computes."""

    def __init__(self, batches: Batches, *, phase: int, end: int) -> None:
        self.batches, self.phase, self.end = batches, phase, end

    def __len__(self) -> int:
        return self.end

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        phase = PHASES[self.phase]
        rng, drawn, kind, color = self.batches.scenes(step, phase.batch(step), self.phase)
        if phase.kind == "vision":
            return {"pixels": images_of(drawn), "kind": kind, "color": color}
        turns = [(i, questions(s, rng, count=QUESTIONS, weights_of=dict(phase.weights))) for i, s in enumerate(drawn)]
        turns = [(i, found) for i, found in turns if found]
        rows = [i for i, _ in turns]
        batch = self.batches.collate([self.batches.sequence(found) for _, found in turns])
        return {**batch, "pixels": images_of([drawn[i] for i in rows]), "kind": kind[rows], "color": color[rows]}

    def loader(self, first: int) -> DataLoader:
        """The batches from step `first` on, in order."""
        return DataLoader(self, batch_size=None, sampler=range(first, self.end), num_workers=1, prefetch_factor=6)
