"""The number of answers generated for the score matrix of a run, and whether they equal those of a direct evaluation.

The stages run in a temporary directory, on the embedded backbone and the built-in stream with fewer rows per split. The direct
evaluation is written here: every entry of the matrix separately, one sample at a time, experts and routers read from their
files, the route computed from that sample, experts in a loop as in the reference, and decoding by transformers.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from dmole_cli.artifacts.router import RouterFile
from dmole_cli.backbones.backbone import Backbone, Encoded
from dmole_cli.data.card import load_card
from dmole_cli.experts.expert import Expert
from dmole_cli.methods.base import Entry, load_method
from pipelines.bench._reference import looped_experts
from pipelines.bench._stream import TASKS, UNSEEN, StreamRun
from pipelines.bench._timing import Row, counted

TRAIN, TEST = 256, 8  # rows per task
MOST = 2  # experts per sample


@dataclass(frozen=True)
class DirectAnswer:
    """The direct evaluation of one sample in one entry.

    Attributes:
        route: the experts, nearest first.
        answer: greedy.
    """

    route: list[str]
    answer: str


def trained(folder: Path, *, tasks: Sequence[str], unseen: Sequence[str], train: int, test: int) -> StreamRun:
    """Run the stages before `evaluate` on the built-in cards with smaller splits."""
    seen, never = ([smaller(folder, task, train=train, test=test) for task in names] for names in (tasks, unseen))
    run = StreamRun(folder / "run", tasks=seen, unseen=never, quick=True)
    run.train()
    return run


def smaller(folder: Path, task: str, *, train: int, test: int) -> str:
    """Write a built-in task's card with smaller splits; gives its path."""
    text = load_card(task).path.read_text(encoding="utf-8")
    for split, rows in (("train", train), ("test", test)):
        text = re.sub(rf"^{split} = \d+$", f"{split} = {rows}", text, flags=re.MULTILINE)
    path = folder / f"{task}.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


@torch.no_grad()
def directly(run: StreamRun, stage: int, task: str) -> list[DirectAnswer]:
    """The direct evaluation of the test samples of a task after `stage` tasks."""
    backbone, earlier = run.backbone, run.tasks[:stage]
    files = {name: run.expert(name) for name in earlier}
    experts = {name: Expert(file.sites, file.scale) for name, file in files.items()}
    routers = {name: run.router(name) for name in earlier}
    rows = []
    for sample in run.samples(task, "test"):
        encoded = backbone.encode(sample, with_answer=False)
        route = nearest(feature(backbone, encoded), routers, scale=run.settings.evaluate.threshold_scale)
        with looped_experts(backbone.model, experts, route, p=0.0):
            rows.append(DirectAnswer(route, answer(run, task, encoded)))
    return rows


def feature(backbone: Backbone, encoded: Encoded) -> torch.Tensor:
    """The routing feature of a sample with an image [width]."""
    image = backbone.vision(pixel_values=encoded.vision["pixel_values"]).last_hidden_state.flatten(0, 1)
    text = backbone.language(input_ids=encoded.instruction[None], use_cache=False).last_hidden_state[0]
    joined = torch.cat([image.amax(dim=0), text.amax(dim=0)])
    return joined / joined.norm()


def nearest(x: torch.Tensor, routers: Mapping[str, RouterFile], *, scale: float) -> list[str]:
    """The tasks whose autoencoder reconstructs x [width] with an error below its threshold times `scale`, best first."""
    errors = {}
    for name, router in routers.items():
        w = router.tensors
        inner = torch.relu(w["encoder.0.weight"] @ x + w["encoder.0.bias"])
        output = torch.sigmoid(w["decoder.0.weight"] @ inner + w["decoder.0.bias"])
        errors[name] = (output - x).square().mean().item()
    accepting = [name for name, router in routers.items() if errors[name] < router.threshold * scale]
    return sorted(accepting, key=errors.__getitem__)[:MOST]


def answer(run: StreamRun, task: str, encoded: Encoded) -> str:
    """The greedy answer of transformers' `generate`."""
    backbone, limits = run.backbone, run.card(task).generation
    inputs, _ = backbone.collate([encoded], left=True)
    tokens = backbone.model.generate(
        **inputs,
        max_new_tokens=limits.max_new_tokens,
        min_new_tokens=limits.min_new_tokens or None,
        do_sample=False,
        num_beams=1,
        pad_token_id=backbone.tokenizer.pad_token_id,
        eos_token_id=backbone.tokenizer.eos_token_id,
    )
    return backbone.tokenizer.decode(tokens[0, len(encoded.tokens) :], skip_special_tokens=True).strip()


def distinct(entries: Mapping[Entry, Sequence[DirectAnswer]]) -> int:
    """Number of distinct pairs of a sample and a set of experts, which bounds the number of distinct answers."""
    return len({(task, i, frozenset(row.route)) for (_, task), rows in entries.items() for i, row in enumerate(rows)})


def compare(*, rounds: int | None = None, tiny: bool = False) -> list[Row]:
    """Counts only; nothing is timed."""
    tasks, unseen = (TASKS[:1], ()) if tiny else (TASKS, UNSEEN)
    train, test = (32, 2) if tiny else (TRAIN, TEST)
    with tempfile.TemporaryDirectory() as folder:
        run = trained(Path(folder), tasks=tasks, unseen=unseen, train=train, test=test)
        run.evaluate()
        counts = run.generations()
        direct = {entry: directly(run, *entry) for entry in load_method("d-mole").entries(run.tasks, run.unseen)}
        ours = {entry: run.answers(*entry) for entry in direct}
    pairs = [(mine, row) for entry in direct for mine, row in zip(ours[entry], direct[entry], strict=True)]
    # Each task once is the base row, that of the pretrained backbone; tasks that never train are counted, too.
    beyond = sum(count / len(direct[0, task]) - 1 for task, count in counts.items())
    total = sum(counts.values())
    return [
        counted("matrix: answers generated over distinct pairs of sample and experts", total / distinct(direct), 1),
        counted("matrix: evaluations of a task beyond the base row, over tasks", beyond / len(tasks), 1.5),
        counted("matrix: answers that differ from the direct ones", sum(m.prediction != r.answer for m, r in pairs), 0),
        counted("matrix: answers generated over those of all entries", total / len(pairs)),
    ]
