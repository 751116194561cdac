"""Times predictions: without experts as the pretrained backbone answers, with an expert as long as the reference answers are."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from dmole_cli.backbones.backbone import Backbone, Encoded
from dmole_cli.data.card import TaskCard
from dmole_cli.experts.routed import RoutedExperts
from dmole_cli.inference.decoding import generate
from dmole_cli.planning.meter import Speed

DECODED = 8  # tokens after which the time of a decoding step is known


def prediction_speed(
    backbone: Backbone,
    routed: RoutedExperts,
    batches: Iterable[list[Encoded]],
    answers: Sequence[Sequence[str]],
    *,
    card: TaskCard,
    sets: int,
) -> Speed:
    """Seconds per prediction, the mean over the sets of experts that a sample is answered with.

    An untrained expert does not change an answer. A trained one answers as the references do, so that its time follows from the
    time of the prompt, that of a decoding step, and the longest reference of a batch.

    Args:
        backbone: generates.
        routed: with the task's expert attached, if it has one.
        batches: encoded samples.
        answers: reference answers of the samples of each batch.
        card: of the task.
        sets: sets of active experts of a sample; all but the first are the attached expert.
    """
    spent = []  # per batch: seconds of all of its predictions (by the wall clock, by the processor), and their number
    before = _now(backbone)
    for own, batch in zip(answers, batches, strict=False):
        prepared = _now(backbone) - before
        timer = _Timer(backbone, routed, batch, card)
        longest = max(len(backbone.inputs.answer_tokens(answer)) for answer in own)
        seconds = prepared + timer.free()
        if sets > 1:
            seconds += (sets - 1) * timer.forced(longest)
        spent.append((seconds, sets * len(batch)))
        before = _now(backbone)
    spent = spent[1:] or spent  # in the first batch, libraries choose kernels
    total = torch.stack([seconds for seconds, _ in spent]).sum(dim=0)
    wall, cpu = (total / sum(count for _, count in spent)).tolist()
    return Speed(wall, cpu)


class _Timer:
    """Times the predictions of one batch."""

    def __init__(self, backbone: Backbone, routed: RoutedExperts, batch: list[Encoded], card: TaskCard) -> None:
        self._backbone, self._routed, self._limits = backbone, routed, card.generation
        self._inputs, self._rows = backbone.collate(batch, left=True)
        self._samples = len(batch)

    def free(self) -> torch.Tensor:
        """Seconds of the answers without experts."""
        return self._timed((), self._limits.max_new_tokens, self._limits.min_new_tokens)

    def forced(self, tokens: int) -> torch.Tensor:
        """Seconds of answers with all experts that are attached, of that many tokens, at most the card's maximum."""
        names, most = tuple(self._routed.experts), self._limits.max_new_tokens
        prompt, several = self._timed(names, 1, 1), min(DECODED, most)
        if several == 1:
            return prompt
        step = (self._timed(names, several, several) - prompt) / (several - 1)
        return prompt + (min(tokens, most) - 1) * step.clamp(min=0)

    def _timed(self, active: tuple[str, ...], most: int, least: int) -> torch.Tensor:
        before, backbone = _now(self._backbone), self._backbone
        with self._routed.route(
            [active] * self._samples, rows=self._rows, device=backbone.device, dtype=backbone.compute_dtype
        ):
            inputs: dict[str, Any] = dict(self._inputs)
            generate(backbone, inputs, max_new_tokens=most, min_new_tokens=least, leave=self._routed.keep)
        return _now(backbone) - before


def _now(backbone: Backbone) -> torch.Tensor:
    """Readings of the wall clock and of the process's processor time, in seconds [2]."""
    if backbone.device.type == "cuda":
        torch.cuda.synchronize(backbone.device)
    return torch.tensor([time.perf_counter(), time.process_time()], dtype=torch.float64)
