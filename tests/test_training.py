"""Micro-batches, checkpoints and the figures of steps: a division, an interruption or another process changes no result."""

import dataclasses
import json
import os
import re
import shutil
import signal
import traceback
from pathlib import Path

import pytest
import tiny
import torch

from dmole_cli.artifacts.checkpoint import read_checkpoint
from dmole_cli.artifacts.headers import header_of
from dmole_cli.artifacts.kinds import CHECKPOINT, EXPERT
from dmole_cli.artifacts.run import Run
from dmole_cli.artifacts.training_log import read_training_log
from dmole_cli.cli.workspace import workspace
from dmole_cli.data.card import load_card
from dmole_cli.data.loading import samples as rows_of
from dmole_cli.data.sample import Sample
from dmole_cli.errors import DmoleError, DmoleWarning
from dmole_cli.experts.expert import new_expert
from dmole_cli.experts.routed import RoutedExperts
from dmole_cli.settings.model import TrainSettings
from dmole_cli.settings.reading import read_settings
from dmole_cli.stages.train_task import train_task
from dmole_cli.training.gradients import ANSWERS, LOSS, TOKENS
from dmole_cli.training.loop import Batch, Schedule, Trainer
from dmole_cli.training.micro_batches import largest_that_fits

FIRST, SECOND = tiny.TASKS


# --- micro-batches ---


@pytest.fixture
def samples(backbone, stream):
    """A step of 80 samples whose answers have different lengths; the last three have no image."""
    drawn = list(rows_of(load_card(stream / "tasks" / f"{FIRST}.toml"), "train"))
    answered = [
        dataclasses.replace(drawn[i % len(drawn)], answer=drawn[i % len(drawn)].answer + " and so on" * (i % 4))
        for i in range(77)
    ]
    plain = [Sample(f"text-{i}", "Which colour has grass?", "green" + "!" * i, ("green",)) for i in range(3)]
    return [backbone.encode(sample, with_answer=True) for sample in [*answered, *plain]]


def divided(samples: list, size: int) -> list[list]:
    """Micro-batches of `size` samples; 0 for all of them."""
    size = size or len(samples)
    return [samples[i : i + size] for i in range(0, len(samples), size)]


def sites_of(backbone) -> list[str]:
    """One site of each tower."""
    names = [name for name, module in backbone.model.named_modules() if name.endswith("q_proj")]
    return [next(n for n in names if backbone.modality_of(n) == tower) for tower in ("vision", "language")]


def gradient(backbone, samples, size: int, *, penalty=None) -> tuple[list, list]:
    """The figures of a step in micro-batches of `size`, and the gradient of each parameter."""
    shapes = {site: (2, tiny.WIDTH, tiny.WIDTH) for site in sites_of(backbone)}
    expert = new_expert(shapes, scale=1.0, generator=torch.Generator().manual_seed(1))
    for _, b in expert.sites.values():
        b.data.normal_(generator=torch.Generator().manual_seed(2))
    routed = RoutedExperts(backbone.model, backbone.modality_of)
    routed.add("it", expert)
    parts = divided(samples, size)
    schedule = Schedule(1, 0.1, TrainSettings(), [len(parts)])
    trainer = Trainer(backbone, routed, expert, schedule=schedule, penalty=penalty)
    try:
        rows = (Batch(["?"] * len(part), [("it",)] * len(part), list(part)) for part in parts)
        step, _ = trainer._gradient(iter(rows))
        figures = step.finish(trainer.optimizer).tolist()
    finally:
        routed.close()
    return figures, [piece.values.grad for piece in trainer.flat.pieces]


@pytest.mark.parametrize("size", [1, 4, 27, 79])
def test_a_divided_step_has_the_loss_and_the_gradient_of_the_whole_step(backbone, samples, size):
    figures, whole = gradient(backbone, samples, 0)
    found, parts = gradient(backbone, samples, size)
    assert found[LOSS] == pytest.approx(figures[LOSS], rel=1e-6)
    assert found[ANSWERS:] == figures[ANSWERS:] and found[TOKENS] == sum(len(s.tokens) for s in samples)
    one, other = (torch.cat([grad.flatten() for grad in grads]) for grads in (whole, parts))
    assert (one - other).norm() <= 1e-6 * one.norm()


def test_the_mean_is_over_answer_tokens_not_over_micro_batches(backbone, samples):
    """The mean of the parts' means, which other tools compute, is another number here."""
    last = sorted(samples[-12:], key=lambda sample: int((sample.labels >= 0).sum()))
    figures, _ = gradient(backbone, last, 0)
    means = [gradient(backbone, part, 0)[0][LOSS] for part in divided(last, 4)]
    assert abs(sum(means) / len(means) - figures[LOSS]) > 1e-3


def test_a_parameter_that_no_sample_reaches_has_no_gradient(backbone, samples):
    """A vision expert without images gets no step of the optimizer, and no weight decay; divided or not."""
    for size in (0, 2):
        _, grads = gradient(backbone, samples[-3:], size)
        # Of the two towers.
        assert sorted(grad is None for grad in grads) == [False, True]
    # The last micro-batch has no images, the others have.
    assert all(grad is not None for grad in gradient(backbone, samples[-9:], 3)[1])


def test_penalties_that_are_means_do_not_depend_on_the_division(backbone, samples):
    def penalty(step):
        return step.logits.float().pow(2).mean()

    (_, whole, *_), (_, parts, *_) = (gradient(backbone, samples, size, penalty=penalty)[0] for size in (0, 5))
    assert whole > 0 and parts == pytest.approx(whole, rel=1e-6)


def test_the_largest_micro_batch_that_fits():
    tried = []

    def attempt(size: int) -> None:
        tried.append(size)
        torch.empty(1 << (30 + size) if size > 5 else 1)  # the allocator itself refuses

    assert largest_that_fits(attempt, 16) == 4 and tried == [16, 8, 4]
    with pytest.raises(DmoleError, match="not even one sample fits"):
        largest_that_fits(lambda size: torch.empty(1 << 45), 2)


# --- interruptions ---


@pytest.fixture
def work(finished, tmp_path, monkeypatch):
    """A workspace over a copy of the finished stream, whose experts and predictions are gone."""
    folder = shutil.copytree(finished, tmp_path / "stream")
    for name in ("experts", "evaluations", "generations", "costs", "training"):
        shutil.rmtree(folder / "dmole-run" / name)
    monkeypatch.chdir(tiny.shorten(folder))
    return at(Run(Path("dmole-run")))


def at(run: Run, *, budget: str = "4%", **train):
    settings = read_settings(Path("dmole.toml"))
    allocate = settings.allocate.updated(budget=budget)
    return workspace(settings.updated(train=settings.train.updated(**train), allocate=allocate), run)


def killed_at(step: int, train) -> None:
    """Run a training in a child process that kills itself after so many steps."""

    def track(items, description, total, *, done=0, status=None):
        for number, item in enumerate(items, start=done + 1):
            yield item
            if number == step:
                os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        try:
            train(track)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(3)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


@pytest.mark.parametrize(
    ("method", "train"),
    [
        ("finetune", {"dropout": 0.2}),
        ("finetune", {"dropout": 0.2, "micro_batch": "3", "clip": 0.5}),
        ("ewc-lora", {}),
        ("lwf-lora", {"micro_batch": "4"}),
    ],
)
def test_a_killed_training_goes_on_and_ends_with_the_same_bytes(work, method, train):
    found = []
    for name, steps in (("undisturbed", []), ("killed", [2, 3, 7])):
        there = at(Run(Path(name)), save_every=0.0, **train)
        there.model.__dict__["_loaded"] = work.model.load()
        for task in (FIRST, SECOND) if method != "finetune" else (FIRST,):
            for step in steps:
                killed_at(
                    step,
                    lambda track, there=there, task=task: train_task(task, **there.parts, method=method, track=track),
                )
                assert there.run.checkpoint(task, method).exists() and not there.run.expert(task, method).exists()
            outcome = train_task(task, **there.parts, method=method)
            assert outcome.facts.get("resumed_after_step", 0) == (steps[-1] if steps else 0)
            figures = read_training_log(there.run.training_log(task, method))
            assert [row.step for row in figures] == list(range(1, outcome.facts["steps"] + 1))
            assert not there.run.checkpoint(task, method).exists()
        found.append(
            ({k: v for k, v in tiny.files_of(Path(name)).items()}, [dataclasses.replace(f, seconds=0) for f in figures])
        )
    assert found[0] == found[1] and any(name.startswith("experts") for name in found[0][0])


def test_a_checkpoint_holds_the_expert_and_its_moments_and_nothing_of_the_backbone(work):
    there = at(Run(Path("large")), budget="params:60k", save_every=0.0)
    killed_at(9, lambda track: train_task(FIRST, **there.parts, method="finetune", track=track))
    size = there.run.checkpoint(FIRST, "finetune").stat().st_size
    header = header_of(there.run.checkpoint(FIRST, "finetune"), CHECKPOINT)
    assert header is not None and header.facts["step"] == 9
    train_task(FIRST, **there.parts, method="finetune")
    assert size <= 3.1 * there.run.expert(FIRST, "finetune").stat().st_size


def test_a_checkpoint_of_other_settings_or_a_damaged_one_is_not_used(work):
    kept = at(Run(Path("kept")), save_every=0.0)
    path = kept.run.checkpoint(FIRST, "finetune")
    killed_at(5, lambda track: train_task(FIRST, **kept.parts, method="finetune", track=track))
    content = path.read_bytes()
    for damaged, changes, said in (
        (content, {"learning_rate": 0.5}, "is of another training run (learning_rate"),
        (content, {"micro_batch": "3"}, "is of another training run (micro_batch 0 -> 3"),
        (content[:-7], {}, "training starts from the beginning"),
    ):
        path.write_bytes(damaged)
        with pytest.warns(DmoleWarning, match=re.escape(said)):
            outcome = train_task(FIRST, **at(kept.run, **changes).parts, method="finetune", force=True)
        assert "resumed_after_step" not in outcome.facts and not path.exists()


def test_figures_of_every_step(work):
    outcome = train_task(FIRST, **at(work.run, micro_batch="3").parts, method="finetune")
    figures = read_training_log(work.run.training_log(FIRST, "finetune"))
    assert round(figures[0].loss, 4) == outcome.facts["first_loss"] and outcome.facts["micro_batch"] == 3
    assert all(row.tokens > 0 and row.seconds > 0 and row.gradient_norm > 0 for row in figures)
    assert [row.learning_rate for row in figures][-1] < figures[1].learning_rate
    header = header_of(work.run.expert(FIRST, "finetune"), EXPERT)
    assert header is not None and header.facts["micro_batch"] == 3 and "micro_batch" not in header.settings
    assert read_checkpoint(work.run.checkpoint(FIRST, "finetune"), header) is None


def test_a_tracker_whose_package_is_missing_is_named(work):
    with pytest.raises(DmoleError, match="--log-to trackio needs the package trackio") as caught:
        train_task(FIRST, **at(work.run, log_to="trackio").parts, method="finetune")
    assert caught.value.hint == "pip install trackio"


def test_figures_in_tensorboard(work):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train_task(FIRST, **at(work.run, log_to="tensorboard").parts, method="finetune")
    events = EventAccumulator(str(work.run.root / "training" / "logs" / f"finetune-{FIRST}"))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("loss")]
    assert found == [(row.step, row.loss) for row in read_training_log(work.run.training_log(FIRST, "finetune"))]


def test_an_automatic_micro_batch_is_remembered(work):
    """Where the whole step fits, it is not divided, and the expert has the bytes that it has without the option."""
    bytes_of = []
    for name, size in (("plain", "0"), ("automatic", "auto")):
        there = at(Run(Path(name)), micro_batch=size)
        assert "micro_batch" not in train_task(FIRST, **there.parts, method="finetune").facts
        bytes_of.append(there.run.expert(FIRST, "finetune").read_bytes())
    assert bytes_of[0] == bytes_of[1]
    remembered = Path("automatic", "cache", "micro_batches.json")
    [(key, size)] = json.loads(remembered.read_text(encoding="utf-8")).items()
    assert size == 8
    remembered.write_text(json.dumps({key: 3}), encoding="utf-8")
    outcome = train_task(FIRST, **at(Run(Path("automatic")), micro_batch="auto").parts, method="finetune", force=True)
    assert outcome.facts["micro_batch"] == 3
