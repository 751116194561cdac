"""Which answers a sample can have at all, and which of them are right: what a likelihood is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase

from dmole_cli.data.card import TaskCard
from dmole_cli.data.sample import Sample
from dmole_cli.metrics.base import load_metric


@dataclass(frozen=True)
class Choices:
    """The answers to one sample whose likelihood is worth knowing.

    Attributes:
        answers: each once, the references first.
        references: how many of them are references.
        right: which of them are right; None where the set of possible answers is open.
    """

    answers: tuple[str, ...]
    references: int
    right: tuple[bool, ...] | None


def choices_of(card: TaskCard, sample: Sample) -> Choices:
    """The references of a sample, and the other members of its closed set if it has one.

    A sample's own options come before the card's `answers`. Of options those texts are compared that are answered with,
    the letters or the options themselves, whichever the reference is; where it is neither, the set counts as open.
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
    """Which answers the card's metric takes for right."""
    metric = load_metric(card.metric)
    nothing: list[dict[str, object]] = [{} for _ in answers]
    return tuple(s == 1.0 for s in metric.score(answers, references=[references for _ in answers], details=nothing))


def _options(sample: Sample) -> list[str]:
    options = sample.details.get("options")
    return options if isinstance(options, list) and all(isinstance(text, str) for text in options) else []


def _as_answered(options: Sequence[str], reference: str) -> tuple[str, ...]:
    letters = tuple(ascii_uppercase[: len(options)])
    # A single character is a letter before it is a text, as for the metric.
    return letters if reference in letters else tuple(options) if reference in options else ()
