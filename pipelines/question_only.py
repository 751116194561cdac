"""Print two scores per task that need no image, on the test split: of random guesses, and of answers to the question's text.

    python pipelines/question_only.py [task ...]

Both are in points (0 to 100, CIDEr x 100) of the task's own metric. `chance` draws uniformly from the answers of the
training split, or from the sample's options. `question_only` gives the most frequent answer to the same question in the
training split, the mean box if the answer is a box, and for captions the training caption with the highest score on the
validation split. docs/tasks.md and the task cards quote these numbers.
"""

from __future__ import annotations

import random
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence

from dmole_cli.data.card import TaskCard, load_card, task_names
from dmole_cli.data.loading import samples
from dmole_cli.data.sample import Sample
from dmole_cli.metrics.base import load_metric

DRAWS = 10
CAPTION_CANDIDATES = 20


def points(card: TaskCard, predictions: Sequence[str], rows: Sequence[Sample]) -> float:
    """Mean score of predictions in points of the card's metric."""
    metric = load_metric(card.metric)
    scores = metric.score(
        predictions, references=[row.references for row in rows], details=[row.details for row in rows]
    )
    return metric.UNIT_SCALE * sum(scores) / len(scores)


def chance(card: TaskCard, train: Sequence[Sample], test: Sequence[Sample]) -> float:
    """Mean score of `DRAWS` seeded uniform guesses per sample."""
    source = random.Random(0)
    answers = sorted({row.answer for row in train})
    guesses = [[source.choice(row.details.get("options") or answers) for row in test] for _ in range(DRAWS)]
    return sum(points(card, guess, test) for guess in guesses) / DRAWS


def question_only(
    card: TaskCard, train: Sequence[Sample], validation: Sequence[Sample], test: Sequence[Sample]
) -> float:
    """Score of the best answers that can be given without the image."""
    if card.metric == "cider":
        candidates = [answer for answer, _ in Counter(row.answer for row in train).most_common(CAPTION_CANDIDATES)]
        best = max(candidates, key=lambda caption: points(card, [caption] * len(validation), validation))
        return points(card, [best] * len(test), test)
    by_question: dict[str, list[Sample]] = defaultdict(list)
    for row in train:
        by_question[_normalized(row.question)].append(row)
    answer = _mean_box if card.metric == "grounding" else _most_frequent
    return points(card, [answer(by_question.get(_normalized(row.question)) or train) for row in test], test)


def _normalized(question: str) -> str:
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
    """Print a row for each of the named tasks; by default for all that have an entry for `chance` in their card."""
    print(f"{'task':22} {'train':>6} {'test':>6} {'chance':>8} {'question_only':>14}")
    for name in names or [name for name in task_names() if load_card(name).reading.chance >= 0]:
        card = load_card(name)
        train, validation, test = (samples(card, split) for split in ("train", "validation", "test"))
        blind, text = chance(card, train, test), question_only(card, train, validation, test)
        print(f"{name:22} {len(train):6d} {len(test):6d} {blind:8.1f} {text:14.1f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
