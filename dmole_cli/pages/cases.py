"""Case studies of a page: the chosen samples with their images and the answers after every stage."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

from dmole_cli.figures.base import Experiment, Source
from dmole_cli.pages.grids import Cell, PageTable
from dmole_cli.reports.cases import KINDS, Case, case_image, choose_cases
from dmole_cli.reports.tables import MISSING

PER_KIND = 2  # of each task and kind


@dataclass(frozen=True)
class ShownCase:
    """A case as a page has it.

    Attributes:
        task: of the sample.
        sample_id: of the evaluated split.
        kinds: what it is an example of.
        question: with the prompt template applied.
        references: accepted answers.
        image: JPEG in base64; empty where it cannot be read.
        placeholder: what stands in place of the image.
        score: of the last answer, in the metric's unit.
        loss: reconstruction loss under the own router after the last stage; -1 without routers, so that it is sorted last.
        answers: a row per stage.
    """

    task: str
    sample_id: str
    kinds: Sequence[str]
    question: str
    references: Sequence[str]
    image: str
    placeholder: str
    score: float
    loss: float
    answers: PageTable


def kind_meanings() -> dict[str, str]:
    """Kind of case -> its definition."""
    return dict(KINDS)


def shown_cases(source: Source) -> list[ShownCase]:
    """The cases of the first example; none without evaluations."""
    for one in source.examples[:1]:
        return [_shown(case, source, one) for case in choose_cases(one, per_kind=PER_KIND, seed=source.seed)]
    return []


def _shown(case: Case, source: Source, one: Experiment) -> ShownCase:
    image = case_image(source.data, case.task, case.sample_id, one.split)
    rows = [
        [
            Cell(f"{answer.after} {answer.label}", answer.after, tag="th"),
            Cell(answer.prediction),
            Cell(f"{answer.score:.2f}", answer.score, number=True),
            Cell(", ".join(answer.active) or "none"),
            Cell(MISSING if answer.own_loss is None else f"{answer.own_loss:.3g}", answer.own_loss, number=True),
        ]
        for answer in case.answers
    ]
    last = case.answers[-1]
    return ShownCase(
        case.task,
        case.sample_id,
        case.kinds,
        case.question,
        case.references,
        base64.b64encode(image).decode("ascii") if image else "",
        f"Image not available: {', '.join(case.images)}" if case.images else "This sample has no image.",
        last.score,
        -1.0 if last.own_loss is None else last.own_loss,
        PageTable(["after", "answer", "score", "active experts", "own loss"], rows),
    )
