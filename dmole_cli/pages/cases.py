"""Case studies of a page: the chosen samples with their images and the answers after every stage."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

from dmole_cli.figures.base import Experiment, Source
from dmole_cli.pages.grids import Cell, PageTable
from dmole_cli.reports.cases import Case, case_image, choose_cases
from dmole_cli.reports.tables import MISSING

PER_KIND = 14


@dataclass(frozen=True)
class ShownCase:
    """A case as a page has it.

    Attributes:
        task: of the sample.
        sample_id: of the evaluated split.
        kinds: what it is an example of.
        question: with the prompt template applied.
        references: accepted answers.
        image: JPEG in base64; empty where it is missing or damaged.
        placeholder: what stands in place of the image.
        score: of the last answer, in points.
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


def shown_cases(source: Source) -> list[ShownCase]:
    """The cases of the first example; none without evaluations."""
    for one in source.examples[:1]:
        return [_shown(case, source, one) for case in choose_cases(one, per_kind=PER_KIND, seed=source.seed)]
    return []


def _shown(case: Case, source: Source, one: Experiment) -> ShownCase:
    image = case_image(source.data, case.task, case.sample_id, one.split)
    own = [answer.losses.get(case.task) for answer in case.answers]
    rows = [
        [
            Cell(f"{answer.stage} {answer.after}", answer.stage, tag="th"),
            Cell(answer.prediction),
            Cell(f"{answer.points:.0f}", answer.points, number=True),
            Cell(", ".join(answer.active) or "none"),
            Cell(MISSING if loss is None else f"{loss:.3g}", loss, number=True),
        ]
        for answer, loss in zip(case.answers, own, strict=True)
    ]
    return ShownCase(
        case.task,
        case.sample_id,
        case.kinds,
        case.question,
        case.references,
        base64.b64encode(image).decode("ascii") if image else "",
        f"Image not available: {', '.join(case.images)}" if case.images else "This sample has no image.",
        case.answers[-1].points,
        -1.0 if own[-1] is None else own[-1],
        PageTable(["after", "answer", "points", "active experts", "own loss"], rows),
    )
