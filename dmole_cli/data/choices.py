"""The possible answers of a sample and which of them are correct, for comparing their likelihoods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase

from dmole_cli.data.card import TaskCard
from dmole_cli.data.sample import Sample
from dmole_cli.metrics.base import load_metric


@dataclass(frozen=True)
class Choices:
    """The answers to one sample whose likelihood is computed.

    Attributes:
        answers: distinct answers, the references first.
        references: number of references.
        right: which answers are correct; None if the set of possible answers is open.
    """

    answers: tuple[str, ...]
    references: int
    right: tuple[bool, ...] | None


def choices_of(card: TaskCard, sample: Sample) -> Choices:
    """Return the references of a sample, and the other members of its closed set of answers if it has one.

    A sample's own options take precedence over the card's `answers`. Options are compared in the form of the reference: as
    letters or as texts. If the reference is neither, the set is open.
    """
    references = list(dict.fromkeys(sample.references))
    options = _options(sample)
    closed = _as_answered(options, references[0]) if options else card.answers
    answers = list(dict.fromkeys([*references, *closed]))
    right = None
    if options and closed:
        right = tuple(answer in references for answer in answers)
    elif closed:
        right = right_answers(card, answers, references)
    return Choices(tuple(answers), len(references), right)


def right_answers(card: TaskCard, answers: Sequence[str], references: Sequence[str]) -> tuple[bool, ...]:
    """Which answers get the full score of the card's metric."""
    metric = load_metric(card.metric)
    no_details: list[dict[str, object]] = [{} for _ in answers]
    scores = metric.score(answers, references=[references for _ in answers], details=no_details)
    return tuple(score == 1.0 for score in scores)


def _options(sample: Sample) -> list[str]:
    options = sample.details.get("options")
    return options if isinstance(options, list) and all(isinstance(text, str) for text in options) else []


def _as_answered(options: Sequence[str], reference: str) -> tuple[str, ...]:
    """The options in the form of the reference, letters or texts; empty if it is neither."""
    letters = tuple(ascii_uppercase[: len(options)])
    # A single character is read as a letter first, as in the metric.
    return letters if reference in letters else tuple(options) if reference in options else ()
