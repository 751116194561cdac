"""Answers -> scores by any metric of the shelf, for the stage that generates them and the one that scores them again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from dmole_cli import catalog


@dataclass(frozen=True)
class Scores:
    """What a metric says of one task's answers.

    Attributes:
        samples: a value per answer (0..1; CIDEr 0..10).
        corpus: of all answers together, for metrics where that is not the samples' mean (BLEU, METEOR), else None.
        unit: points of a score of 1.
    """

    samples: list[float]
    corpus: float | None
    unit: float

    @property
    def points(self) -> float:
        """The task's score in points."""
        return self.unit * (fmean(self.samples) if self.corpus is None else self.corpus)

    @property
    def facts(self) -> dict[str, float]:
        """For the header of the file that holds the samples' scores; reports take the corpus' score from there."""
        return {} if self.corpus is None else {"corpus": self.corpus}


def score_answers(
    metric: str,
    predictions: Sequence[str],
    *,
    references: Sequence[Sequence[str]],
    details: Sequence[Mapping[str, Any]],
) -> Scores:
    """Score the answers of one task.

    Raises:
        DmoleError: there is no such metric, or it cannot work on these samples.
    """
    module = catalog.load("metrics", metric)
    if hasattr(module, "score_corpus"):
        samples, corpus = module.score_corpus(predictions, references=references, details=details)
        return Scores(samples, corpus, module.UNIT_SCALE)
    return Scores(module.score(predictions, references=references, details=details), None, module.UNIT_SCALE)
