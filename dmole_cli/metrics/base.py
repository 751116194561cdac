"""What a metric is, and how the predictions of one task are scored with it.

A file of `metrics/` is a metric; its name is the file's. It defines `score`, or `score_corpus` in its place, and of the rest only
what differs from the defaults:

- `score(predictions, *, references, details)`: a score per sample; that of the split is their mean;
- `score_corpus(predictions, *, references, details)`: for a metric with an aggregation of its own (BLEU): a score per sample, and
  the score of the whole split;
- `UNIT_SCALE = 100.0`: points of a score of 1;
- `MAXIMUM = 1.0`: the largest possible score of a sample, `math.inf` without an upper bound;
- `NEEDS_DETAILS = ()`: keys that the `details` of every sample must have;
- `FURTHER = {}`: name -> function like `score`, of what reports show beside the score;
- `CLOSED_ANSWERS = False`: whether a card may list all possible answers of a task (`answers`), because the metric tells right
  (score 1) from wrong by the text alone;
- `DEPENDS_ON_CORPUS = False`: whether the score of a sample depends on the other samples.

Arguments: `predictions` are the generated answers; `references` holds the accepted answers of each sample, at least one;
`details` has what the formats provide beyond them (options, boxes), JSON values. Docstrings name the metric's source.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from statistics import fmean
from typing import Any

from dmole_cli import catalog
from dmole_cli.errors import DmoleError

# (predictions, *, references, details) -> a score per sample; and with the score of the split.
SampleScores = Callable[..., list[float]]
CorpusScores = Callable[..., tuple[list[float], float]]


@dataclass(frozen=True)
class Metric:
    """A file of `metrics/` with the defaults filled in; the module's docstring describes the fields."""

    name: str
    score: SampleScores
    score_corpus: CorpusScores | None = None
    UNIT_SCALE: float = 100.0
    MAXIMUM: float = 1.0
    NEEDS_DETAILS: Sequence[str] = ()
    FURTHER: Mapping[str, SampleScores] = field(default_factory=dict)
    CLOSED_ANSWERS: bool = False
    DEPENDS_ON_CORPUS: bool = False

    @property
    def maximum_points(self) -> float:
        """The largest possible score of a sample, in points."""
        return self.UNIT_SCALE * self.MAXIMUM

    def scored(self, samples: list[float], facts: Mapping[str, float]) -> Scores:
        """Scores that were written to a file: those of its rows, and the facts of its header."""
        return Scores(samples, facts.get("corpus"), self.UNIT_SCALE)


@dataclass(frozen=True)
class Scores:
    """The scores of one task's predictions.

    Attributes:
        samples: a score per sample (0..1; CIDEr 0..10).
        corpus: the score of the whole split where it is not the samples' mean (BLEU, METEOR), else None.
        unit: points of a score of 1.
    """

    samples: list[float]
    corpus: float | None
    unit: float

    @property
    def points(self) -> float:
        """The score of the split in points."""
        return self.unit * (fmean(self.samples) if self.corpus is None else self.corpus)

    @property
    def facts(self) -> dict[str, float]:
        """What the header of the file with the samples' scores has to hold; `Metric.scored` reads it."""
        return {} if self.corpus is None else {"corpus": self.corpus}


def load_metric(name: str) -> Metric:
    """Load a metric of the shelf.

    Raises:
        DmoleError: there is no such file, or it defines neither `score` nor `score_corpus`.
    """
    module = catalog.load("metrics", name)
    given = {f.name: getattr(module, f.name) for f in fields(Metric) if f.name != "name" and hasattr(module, f.name)}
    if "score_corpus" in given:
        given.setdefault("score", partial(_sample_scores, given["score_corpus"]))
    if "score" not in given:
        raise DmoleError(f"metrics/{name}.py defines neither `score` nor `score_corpus`", "see metrics/base.py")
    return Metric(name=name, **given)


def _sample_scores(
    score_corpus: CorpusScores,
    predictions: Sequence[str],
    *,
    references: Sequence[Sequence[str]],
    details: Sequence[Mapping[str, Any]],
) -> list[float]:
    return score_corpus(predictions, references=references, details=details)[0]


def score_answers(
    metric: str,
    predictions: Sequence[str],
    *,
    references: Sequence[Sequence[str]],
    details: Sequence[Mapping[str, Any]],
) -> Scores:
    """Score the predictions of one task.

    Raises:
        DmoleError: there is no such metric, or it cannot score these samples.
    """
    chosen = load_metric(metric)
    if chosen.score_corpus is None:
        return Scores(chosen.score(predictions, references=references, details=details), None, chosen.UNIT_SCALE)
    samples, corpus = chosen.score_corpus(predictions, references=references, details=details)
    return Scores(samples, corpus, chosen.UNIT_SCALE)
