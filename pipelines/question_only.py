"""Print two scores that need no picture, per task on its test split: a blind guess, and the best answer to the text.

    python pipelines/question_only.py [task ...]

Both are in points (0 to 100, CIDEr x 100) and scored with the task's own metric. `chance` draws evenly from the
answers that the training split has, or from the sample's own options. `question_only` learns from the training split:
the answer given most often to that very question; the mean box where the answer is a box; for captions the one
training caption that does best on the validation split. docs/tasks.md and the cards quote what this prints.
"""

from __future__ import annotations

import random
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence

from dmole_cli.data.loading import TaskCard, load_card, samples, task_names
from dmole_cli.data.sample import Sample
from dmole_cli.metrics.base import load_metric

DRAWS = 10
CAPTION_CANDIDATES = 20


def points(card: TaskCard, predictions: Sequence[str], rows: Sequence[Sample]) -> float:
    """Score answers with the card's metric: the mean in points."""
    metric = load_metric(card.metric)
    scores = metric.score(
        predictions, references=[row.references for row in rows], details=[row.details for row in rows]
    )
    return metric.UNIT_SCALE * sum(scores) / len(scores)


def chance(card: TaskCard, train: Sequence[Sample], test: Sequence[Sample]) -> float:
    """Score uniform guesses: the mean of some draws, seeded."""
    source = random.Random(0)
    answers = sorted({row.answer for row in train})
    guesses = [[source.choice(row.details.get("options") or answers) for row in test] for _ in range(DRAWS)]
    return sum(points(card, guess, test) for guess in guesses) / DRAWS


def question_only(
    card: TaskCard, train: Sequence[Sample], validation: Sequence[Sample], test: Sequence[Sample]
) -> float:
    """Score the best answers that can be given without looking."""
    if card.metric == "cider":
        candidates = [answer for answer, _ in Counter(row.answer for row in train).most_common(CAPTION_CANDIDATES)]
        best = max(candidates, key=lambda caption: points(card, [caption] * len(validation), validation))
        return points(card, [best] * len(test), test)
    by_question: dict[str, list[Sample]] = defaultdict(list)
    for row in train:
        by_question[_normalised(row.question)].append(row)
    answer = _mean_box if card.metric == "grounding" else _most_frequent
    return points(card, [answer(by_question.get(_normalised(row.question)) or train) for row in test], test)


def _normalised(question: str) -> str:
    return " ".join(question.lower().split())


def _most_frequent(rows: Sequence[Sample]) -> str:
    return Counter(row.answer for row in rows).most_common(1)[0][0]


def _mean_box(rows: Sequence[Sample]) -> str:
    sums = [0.0] * 4
    for row in rows:
        for place, value in enumerate(row.details["box"]):
            sums[place] += value / row.details["width" if place % 2 == 0 else "height"]
    return str([round(1000 * value / len(rows)) for value in sums])


def main(names: Sequence[str]) -> None:
    """Print a row for each of the named tasks, or for all."""
    print(f"{'task':12} {'train':>6} {'test':>6} {'chance':>8} {'question_only':>14}")
    # The cards that say what text alone is worth; the benchmarks do not.
    for name in names or [name for name in task_names() if load_card(name).reading.chance >= 0]:
        card = load_card(name)
        train, validation, test = (samples(card, split) for split in ("train", "validation", "test"))
        blind, text = chance(card, train, test), question_only(card, train, validation, test)
        print(f"{name:12} {len(train):6d} {len(test):6d} {blind:8.1f} {text:14.1f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
