"""Files of one entry of the score matrix: the evaluation (predictions with scores) and the likelihoods of reference answers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from dmole_cli.artifacts.evaluation import Answer, write_evaluation
from dmole_cli.artifacts.likelihood import Likelihood, Likelihoods, write_likelihood
from dmole_cli.artifacts.provenance import Header
from dmole_cli.data.choices import Choices, choices_of
from dmole_cli.data.sample import Sample
from dmole_cli.inference.batched import BatchedInference, NewPairs, Pair, unordered
from dmole_cli.metrics.base import score_answers


@dataclass(frozen=True)
class Assignment:
    """The experts of each sample after some tasks.

    Attributes:
        active: names of each sample's active experts.
        losses: reconstruction loss of each sample under each router; where experts are weighted, its distance to each task.
        weights: of each sample's active experts; none where these count alike.
    """

    active: list[tuple[str, ...]]
    losses: list[list[float]]
    weights: list[tuple[float, ...]]

    @property
    def pairs(self) -> list[Pair]:
        """What each sample's result depends on beside the sample."""
        return list(zip(range(len(self.active)), self.active, self.weights, strict=True))


@dataclass(frozen=True)
class EntryFile:
    """One file to write for an entry.

    Attributes:
        after: number of trained tasks, 0 for the pretrained backbone.
        path: the file.
        header: its provenance.
    """

    after: int
    path: Path
    header: Header


Pending = list[tuple[EntryFile, Assignment]]


@dataclass(frozen=True)
class Computed:
    """One entry that was computed, and is not written yet.

    Attributes:
        file: the file.
        figures: to report.
        write: writes the file.
    """

    file: EntryFile
    figures: dict[str, Any]
    write: Callable[[], None]


def evaluations(inference: BatchedInference, pending: Pending) -> list[Computed]:
    """The evaluation of each entry."""
    card, samples = inference.data.card(inference.task), inference.data.samples(inference.task, inference.split)
    found, computed = inference.predictions(pair for _, assigned in pending for pair in assigned.pairs)
    references, details = [list(s.references) for s in samples], [dict(s.details) for s in samples]
    entries = []
    for file, assigned in pending:
        predictions = [found[pair] for pair in assigned.pairs]
        scores = score_answers(card.metric, predictions, references=references, details=details)
        columns = (predictions, references, scores.samples, assigned.active, assigned.losses, details)
        rows = [
            Answer(
                s.sample_id, s.question, p, r, float(v), list(a), m, json.dumps(d, ensure_ascii=False), s.image_names
            )
            for s, p, r, v, a, m, d in zip(samples, *columns, strict=True)
        ]
        new = _count_new(assigned, computed)
        figures = {
            card.metric: round(scores.points, 2),
            "samples": len(samples),
            "generated": new,
            "reused": len(samples) - new,
        }
        write = partial(write_evaluation, file.path, rows, file.header.with_facts(**scores.facts))
        entries.append(Computed(file, figures, write))
    return entries


def likelihoods(inference: BatchedInference, pending: Pending) -> list[Computed]:
    """The likelihoods of each entry."""
    card, samples = inference.data.card(inference.task), inference.data.samples(inference.task, inference.split)
    choices = [choices_of(card, sample) for sample in samples]
    pairs = (pair for _, assigned in pending for pair in assigned.pairs)
    found, computed = inference.likelihoods(pairs, answers=[choice.answers for choice in choices])
    entries = []
    for file, assigned in pending:
        rows = [
            likelihood_row(sample, choice, found[pair], pair[1])
            for sample, choice, pair in zip(samples, choices, assigned.pairs, strict=True)
        ]
        ranked = [row.ranked_first for row in rows if row.ranked_first is not None]
        new = _count_new(assigned, computed)
        figures = {
            "log_likelihood": round(fmean(row.log_likelihood for row in rows), 4),
            **({"ranked_first": round(100 * fmean(ranked), 2)} if ranked else {}),
            "samples": len(samples),
            "scored": new,
            "reused": len(samples) - new,
        }
        entries.append(Computed(file, figures, partial(write_likelihood, file.path, rows, file.header)))
    return entries


def likelihood_row(sample: Sample, choices: Choices, found: Likelihoods, active: Sequence[str]) -> Likelihood:
    """One row, from the likelihoods of a sample's references and, where it has one, of its closed set of answers.

    Answers are ranked by their whole probability and not per token, because free predictions are drawn by the former.
    """
    means = [total / tokens for total, tokens in zip(found.sums, found.tokens, strict=True)]
    first = None
    if choices.right is not None:
        right = [value for value, is_right in zip(found.sums, choices.right, strict=True) if is_right]
        wrong = [value for value, is_right in zip(found.sums, choices.right, strict=True) if not is_right]
        first = max(right) > max(wrong, default=-math.inf)
    return Likelihood(sample.sample_id, max(means[: choices.references]), first, list(active))


def _count_new(assigned: Assignment, computed: NewPairs) -> int:
    """Number of results that were computed for this entry; results that several entries share count for the first."""
    new = set(map(unordered, assigned.pairs)) & computed
    computed -= new
    return len(new)
