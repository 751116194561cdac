"""Measures a minute of every stage's own work on the loaded backbone, and extrapolates it to the whole stream."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch

from dmole_cli.backbones.backbone import Backbone
from dmole_cli.backbones.batches import encoded_batches
from dmole_cli.backbones.checkpointing import activation_checkpointing
from dmole_cli.backbones.sites import find_sites
from dmole_cli.data.sample import Sample
from dmole_cli.experts.routed import RoutedExperts
from dmole_cli.metrics.base import score_answers
from dmole_cli.planning.durations import Part
from dmole_cli.planning.inputs import PlanInputs
from dmole_cli.planning.meter import Meter, Speed
from dmole_cli.planning.predictions import prediction_speed
from dmole_cli.planning.work import FEATURE_BATCH, TaskWork
from dmole_cli.profiling.passes import in_passes, plan_passes
from dmole_cli.profiling.sensitivity import measure_sensitivity
from dmole_cli.progress import Track, quiet
from dmole_cli.routing.autoencoder import Autoencoder, fit
from dmole_cli.training.loop import Batch, Observer, Schedule, Trainer, train_expert

SECONDS = 60.0  # of the whole measurement, without loading
LEARNING_RATE = 1e-6  # of the measured steps, whose expert is dropped
FIT_ROWS, FIT_EPOCHS = 4096, 20  # of the measured router; rows are random, because time does not depend on them
SCORED = 1000  # answers that are scored at most


class _Metered(Observer):
    """Ends a training when the time of a meter is over."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def steps(self, trainer: Trainer) -> Iterable[int]:
        """The steps that fit into the limit."""
        return self._meter.over(super().steps(trainer))


@dataclass(frozen=True)
class _Piece:
    """A kind of work to measure for a task; `run` gets a limit in seconds and returns the stage's parts by speed."""

    stage: str
    what: str
    task: str
    run: Callable[[float], Speed]


def measured_parts(
    inputs: PlanInputs,
    work: Sequence[TaskWork],
    *,
    seconds: float = SECONDS,
    track: Track = quiet,
) -> list[Part]:
    """The parts of all stages and tasks. Every kind of work is measured for one task at least, and for others in the time left.

    Args:
        inputs: of the plan; the backbone is loaded.
        work: of the tasks.
        seconds: of all measurements together; a single batch may take longer.
        track: shows progress.

    Raises:
        DmoleError: a sample cannot be read, or a loss is not finite.
    """
    measuring = Measuring(inputs, inputs.model.load())
    pieces = [piece for item in work for piece in measuring.pieces(item)]
    speeds: dict[tuple[str, str], Speed] = {}
    ends = time.perf_counter() + seconds
    for number, piece in enumerate(track(pieces, "measure", len(pieces))):
        left = ends - time.perf_counter()
        if left > 0 or not any(what == piece.what for what, _ in speeds):
            speeds[piece.what, piece.task] = piece.run(max(0.0, left) / (len(pieces) - number))
    return [part for item in work for part in measuring.parts(item, speeds)]


class Measuring:
    """Measurements of one backbone.

    Args:
        inputs: of the plan.
        backbone: loaded.
    """

    def __init__(self, inputs: PlanInputs, backbone: Backbone) -> None:
        self.inputs, self.backbone = inputs, backbone
        self.settings = inputs.settings

    def pieces(self, work: TaskWork) -> Iterator[_Piece]:
        """What is measured for a task."""
        if work.trains:
            yield _Piece("profile", "profile", work.task, lambda limit: self._profile(work, limit))
            yield _Piece("train-router", "features", work.task, lambda limit: self._features(work.train, limit))
            yield _Piece("train-router", "router", work.task, lambda limit: self._router(work))
            yield _Piece("train-task", "training", work.task, lambda limit: self._training(work, limit))
        yield _Piece("evaluate", "predictions", work.task, lambda limit: self._predictions(work, limit))
        yield _Piece("evaluate", "scores", work.task, lambda limit: self._scores(work))

    def parts(self, work: TaskWork, speeds: Mapping[tuple[str, str], Speed]) -> Iterator[Part]:
        """The parts of a task's stages, from what was measured for it, or else for the other tasks."""
        tested = -(-len(work.test) // self.settings.evaluate.batch_size)
        amounts: dict[str, tuple[str, str, float, int]] = {}
        if work.trains:
            amounts["profile"] = ("profile", "profile", work.profile_tokens, len(work.profile_batches))
            amounts["features"] = ("train-router", "features", len(work.train), -(-len(work.train) // FEATURE_BATCH))
            amounts["router"] = ("train-router", "router", self._fit_steps(len(work.train)), 1)
            amounts["training"] = ("train-task", "training", work.train_tokens, work.step_shares)
        amounts["test features"] = ("evaluate", "features", len(work.test), -(-len(work.test) // FEATURE_BATCH))
        amounts["predictions"] = ("evaluate", "predictions", work.sets * len(work.test), tested)
        amounts["scores"] = ("evaluate", "scores", work.entries * len(work.test), 1)
        for what, (stage, name, amount, shares) in amounts.items():
            speed = _speed(speeds, name, work.task)
            if speed is not None:
                seconds, cpu = speed.first + speed.per_unit * amount, speed.cpu_per_unit * amount
                yield Part(stage, work.task, what, seconds, cpu, shares)

    # ------------------------------------------------------------------------------------------ kinds of work

    def _meter(self, limit: float) -> Meter:
        return Meter(self.backbone.device, lambda: self.backbone.counts, limit)

    def _profile(self, work: TaskWork, limit: float) -> Speed:
        chosen, meter = self.settings.profile, self._meter(limit)
        batches = self._encoded(work.train, work.profile_batches, with_answer=True)
        passes = plan_passes(self.backbone, work.train, work.profile_batches)
        sites = find_sites(self.backbone.model, chosen.sites)
        measure_sensitivity(
            self.backbone,
            sites,
            meter.over(in_passes(batches, passes)),
            checkpointing=chosen.checkpointing,
            per_sample=chosen.per_sample,
        )
        return meter.speed("training_tokens")

    def _features(self, samples: Sequence[Sample], limit: float) -> Speed:
        lengths, meter = self.backbone.instruction_lengths(samples), self._meter(limit)
        batches = self._encoded(samples, _shuffled(lengths, FEATURE_BATCH), with_answer=False)
        for batch in meter.over(batches):
            self.backbone.features(batch)
        return meter.speed("feature_passes")

    def _fit_steps(self, samples: int) -> int:
        """Rows that pass through a router in training, all epochs together."""
        chosen = self.settings.router
        return chosen.epochs * (samples - max(1, round(samples * chosen.held_out)))

    def _router(self, work: TaskWork) -> Speed:
        chosen = self.settings.router
        rows = min(len(work.train), FIT_ROWS)
        short = chosen.updated(epochs=min(FIT_EPOCHS, chosen.epochs), patience=FIT_EPOCHS)
        width = sum(part["width"] for part in self.backbone.feature_layout())
        generator = torch.Generator().manual_seed(0)
        features = torch.nn.functional.normalize(torch.rand(rows, width, generator=generator), dim=-1)
        with torch.random.fork_rng(devices=[]):
            autoencoder = Autoencoder(width, hidden=chosen.hidden, decoder=chosen.decoder)
        fit(autoencoder, features, short.updated(epochs=1), seed=0)
        wall, cpu = time.perf_counter(), time.process_time()
        epochs = fit(autoencoder, features, short, seed=0)
        amount = epochs * rows
        return Speed((time.perf_counter() - wall) / amount, (time.process_time() - cpu) / amount)

    def _training(self, work: TaskWork, limit: float) -> Speed:
        chosen, meter = self.settings.train, self._meter(limit)
        expert = self.inputs.new_expert(work.task, device=self.backbone.device_of)
        encoded = self._encoded(work.train, work.steps, with_answer=True)
        ids = ([work.train[row].sample_id for row in rows] for rows in work.steps)
        steps = (Batch(names, [(work.task,)] * len(names), batch) for names, batch in zip(ids, encoded, strict=False))
        schedule = Schedule(len(work.steps), LEARNING_RATE, chosen)
        saving = activation_checkpointing(self.backbone) if chosen.checkpointing else nullcontext()
        attached = self._attached(work.task, expert, dropout=chosen.dropout)
        with attached as routed, torch.random.fork_rng(devices=[]), saving:
            train_expert(self.backbone, routed, expert, steps, schedule=schedule, observer=_Metered(meter))
        return meter.speed("training_tokens")

    def _predictions(self, work: TaskWork, limit: float) -> Speed:
        """Seconds per prediction, the mean over the sets of experts that a sample is answered with."""
        lengths = self.backbone.lengths(work.test, with_answer=False)
        batches = _shuffled(lengths, self.settings.evaluate.batch_size)
        encoded = self._encoded(work.test, batches, with_answer=False)
        answers = [[work.test[row].answer for row in rows] for rows in batches]
        expert = self.inputs.new_expert(work.task, device=self.backbone.device_of) if work.trains else None
        with self._attached(work.task, expert) as routed:
            return prediction_speed(
                self.backbone,
                routed,
                self._meter(limit).over(encoded),
                answers,
                card=self.inputs.data.card(work.task),
                sets=work.sets,
            )

    def _scores(self, work: TaskWork) -> Speed:
        card, samples = self.inputs.data.card(work.task), work.test[:SCORED]
        references = [list(sample.references) for sample in samples]
        wall, cpu = time.perf_counter(), time.process_time()
        score_answers(
            card.metric,
            [sample.answer for sample in samples],
            references=references,
            details=[dict(sample.details) for sample in samples],
        )
        return Speed((time.perf_counter() - wall) / len(samples), (time.process_time() - cpu) / len(samples))

    def _encoded(self, samples: Sequence[Sample], batches: Sequence[Sequence[int]], *, with_answer: bool) -> Any:
        limit = self.settings.train.max_length if with_answer else 0
        return encoded_batches(self.backbone, samples, batches, with_answer=with_answer, max_length=limit)

    @contextmanager
    def _attached(self, task: str, expert: Any, *, dropout: float = 0.0) -> Iterator[RoutedExperts]:
        routed = RoutedExperts(self.backbone.model, self.backbone.modality_of, dropout=dropout)
        try:
            if expert is not None:
                routed.add(task, expert)
            yield routed
        finally:
            routed.close()


def _shuffled(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Batches of rows of similar length, in a random order, so that the first ones are like all of them."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    return random.Random(0).sample(batches, len(batches))


def _speed(speeds: Mapping[tuple[str, str], Speed], what: str, task: str) -> Speed | None:
    """The speed of a task's work, or else the mean of the other tasks'; None where it was measured for none."""
    if (what, task) in speeds:
        return speeds[what, task]
    known = [speed for (name, _), speed in speeds.items() if name == what]
    if not known:
        return None
    return Speed(*(fmean(getattr(speed, name) for speed in known) for name in ("per_unit", "cpu_per_unit", "first")))
