"""How many answers the matrix of a finished run takes, and whether they are those of the plain way.

The stages themselves run in a temporary directory: profile, allocate, train-router, train-task and evaluate, on the embedded
backbone and the built-in stream with fewer rows per split. The plain way is typed here: every cell of the matrix anew, one
sample after the other, experts and routers read from their files, the route computed from the sample alone, the experts one
after the other as in the reference, and the decoding of transformers.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from dmole_cli.artifacts.evaluation import Answer, read_evaluation
from dmole_cli.artifacts.expert import read_expert
from dmole_cli.artifacts.outcome import read_cost
from dmole_cli.artifacts.router import RouterFile, read_router
from dmole_cli.artifacts.run import D_MOLE, Run
from dmole_cli.backbones.backbone import Backbone, Encoded
from dmole_cli.cli.workspace import Workspace, workspace
from dmole_cli.data.loading import load_card
from dmole_cli.experts.expert import Expert
from dmole_cli.methods.base import Entry, load_method
from dmole_cli.settings.model import DEFAULT_TASKS, DEFAULT_UNSEEN, RouterSettings, Settings, TrainSettings
from dmole_cli.stages.allocate import allocate_task
from dmole_cli.stages.evaluate import evaluate, labelled
from dmole_cli.stages.profile import profile
from dmole_cli.stages.train_router import train_router
from dmole_cli.stages.train_task import train_task
from pipelines.bench._reference import looped_experts
from pipelines.bench._timing import Row, counted

TRAIN, TEST = 256, 8  # rows of a task
MOST = 2  # experts of a sample


@dataclass(frozen=True)
class Plain:
    """What the plain way makes of a sample in a cell.

    Attributes:
        route: the experts, nearest first.
        answer: greedy.
    """

    route: list[str]
    answer: str


def trained(folder: Path, *, tasks: Sequence[str], unseen: Sequence[str], train: int, test: int) -> Workspace:
    """Run the stages before `evaluate` on cards that differ from the built-in ones in the sizes of their splits."""
    config = Settings(
        tasks=tuple(smaller(folder, task, train=train, test=test) for task in tasks),
        unseen=tuple(smaller(folder, task, train=train, test=test) for task in unseen),
        router=RouterSettings(epochs=200),
        train=TrainSettings(batch_size=16),
    )
    session = workspace(config, Run(folder / "run"))
    for stage in (profile, allocate_task, train_router, train_task):
        for task in session.settings.tasks:
            stage(task, **session.parts)
    return session


def smaller(folder: Path, task: str, *, train: int, test: int) -> str:
    """Write a built-in task's card with fewer rows; gives its path."""
    text = load_card(task).path.read_text(encoding="utf-8")
    for split, rows in (("train", train), ("test", test)):
        text = re.sub(rf"^{split} = \d+$", f"{split} = {rows}", text, flags=re.MULTILINE)
    path = folder / f"{task}.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def evaluated(session: Workspace, cell: Entry) -> list[Answer]:
    """What `evaluate` has written of a cell."""
    stage, task = cell
    return read_evaluation(session.run.evaluation(_label(session), stage, task))[0]


@torch.no_grad()
def plain(session: Workspace, cell: Entry) -> list[Plain]:
    """A cell the plain way, a row per sample."""
    stage, task = cell
    backbone, earlier = session.model.load(), session.settings.tasks[:stage]
    experts = {}
    for name in earlier:
        file = read_expert(session.run.expert(name))
        experts[name] = Expert(file.sites, file.scale)
    routers = {name: read_router(session.run.router(name)) for name in earlier}
    rows = []
    for sample in session.data.samples(task, "test"):
        encoded = backbone.encode(sample, with_answer=False)
        route = nearest(feature(backbone, encoded), routers, scale=session.settings.evaluate.threshold_scale)
        with looped_experts(backbone.model, experts, route, p=0.0):
            rows.append(Plain(route, answer(session, task, encoded)))
    return rows


def feature(backbone: Backbone, encoded: Encoded) -> torch.Tensor:
    """What a sample with a picture is routed by [width]."""
    sight = backbone.vision(pixel_values=encoded.vision["pixel_values"]).last_hidden_state.flatten(0, 1)
    text = backbone.language(input_ids=encoded.instruction[None], use_cache=False).last_hidden_state[0]
    joined = torch.cat([sight.amax(dim=0), text.amax(dim=0)])
    return joined / joined.norm()


def nearest(x: torch.Tensor, routers: Mapping[str, RouterFile], *, scale: float) -> list[str]:
    """The tasks whose autoencoder reconstructs x [width] with an error below its threshold times `scale`, best first."""
    errors = {}
    for name, router in routers.items():
        w = router.tensors
        inner = torch.relu(w["encoder.0.weight"] @ x + w["encoder.0.bias"])
        again = torch.sigmoid(w["decoder.0.weight"] @ inner + w["decoder.0.bias"])
        errors[name] = (again - x).square().mean().item()
    accepting = [name for name, router in routers.items() if errors[name] < router.threshold * scale]
    return sorted(accepting, key=errors.__getitem__)[:MOST]


def answer(session: Workspace, task: str, encoded: Encoded) -> str:
    """The greedy answer of transformers."""
    backbone, limits = session.model.load(), session.data.card(task).generation
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


def generated(session: Workspace) -> dict[str, int]:
    """Task -> answers that `evaluate` counted while it generated them."""
    costs = {task: read_cost(session.run.cost(f"evaluate-{_label(session)}", task)) for task in _every_task(session)}
    return {task: cost["counts"]["generations"] for task, cost in costs.items()}


def distinct(cells: Mapping[Entry, Sequence[Plain]]) -> int:
    """Pairs of a sample and a set of experts: no more answers than these can differ."""
    return len({(task, i, frozenset(row.route)) for (_, task), rows in cells.items() for i, row in enumerate(rows)})


def _label(session: Workspace) -> str:
    return labelled(D_MOLE, session.settings.evaluate)


def _every_task(session: Workspace) -> tuple[str, ...]:
    return (*session.settings.tasks, *session.settings.unseen)


def compare(*, rounds: int | None = None, tiny: bool = False) -> list[Row]:
    """Nothing is timed."""
    tasks, unseen = (DEFAULT_TASKS[:1], ()) if tiny else (DEFAULT_TASKS, DEFAULT_UNSEEN)
    train, test = (32, 2) if tiny else (TRAIN, TEST)
    with tempfile.TemporaryDirectory() as folder:
        session = trained(Path(folder), tasks=tasks, unseen=unseen, train=train, test=test)
        evaluate(**session.parts)
        counts = generated(session)
        theirs = {
            cell: plain(session, cell)
            for cell in load_method("d-mole").entries(session.settings.tasks, session.settings.unseen)
        }
        ours = {cell: evaluated(session, cell) for cell in theirs}
    pairs = [(mine, row) for cell in theirs for mine, row in zip(ours[cell], theirs[cell], strict=True)]
    # Each task once is the base row, the pretrained backbone's; the tasks that were never trained are counted, too.
    beyond = sum(count / len(theirs[0, task]) - 1 for task, count in counts.items())
    total = sum(counts.values())
    return [
        counted("matrix: answers generated over distinct pairs of sample and experts", total / distinct(theirs), 1),
        counted("matrix: evaluations of a task beyond the base row, over tasks", beyond / len(tasks), 1.5),
        counted("matrix: answers that differ from the plain way", sum(m.prediction != r.answer for m, r in pairs), 0),
        counted("matrix: answers generated over those of all cells", total / len(pairs)),
    ]
