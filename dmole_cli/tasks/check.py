"""Looks through a task's splits for what would spoil a run: broken pictures, empty or too long answers, leaks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from dmole_cli.errors import DmoleError
from dmole_cli.sample import Sample
from dmole_cli.tasks.card import TaskCard
from dmole_cli.tasks.choices import right_answers

SHOWN = 3


@dataclass(frozen=True)
class Problem:
    """One kind of problem in one split.

    Attributes:
        split: the split, or two joined by `+` for what they share.
        kind: `split`, `image`, `answer`, `length`, `answers`, `sources` or `sample_id`.
        count: how many rows (for `sources`: items) have it.
        first: the first few of them, in words.
    """

    split: str
    kind: str
    count: int
    first: tuple[str, ...]

    def __str__(self) -> str:
        more = f" and {self.count - len(self.first)} more" if self.count > len(self.first) else ""
        return f"{self.split}: {SENTENCES[self.kind]}: {'; '.join(self.first)}{more}"


SENTENCES = {
    "split": "the split cannot be used",
    "image": "a picture does not open",
    "answer": "an answer is empty",
    "length": "an answer has more words than the generation limit has tokens",
    "answers": "a reference is not among the card's 'answers'",
    "sources": "source items occur in both splits",
    "sample_id": "a sample id occurs twice",
}


@dataclass(frozen=True)
class CheckReport:
    """What was looked at, and what was found: `rows` and `opened` count rows and opened pictures per split."""

    task: str
    rows: Mapping[str, int]
    opened: Mapping[str, int]
    problems: tuple[Problem, ...] = field(default=())

    @property
    def ok(self) -> bool:
        """True when nothing was found."""
        return not self.problems


def check_rows(
    card: TaskCard, rows: Mapping[str, Sequence[Sample]], *, problems: Sequence[Problem] = (), images: int = 64
) -> CheckReport:
    """Check the loaded splits of a card; `problems` are those met while loading them.

    Args:
        card: the task.
        rows: samples per split.
        problems: found before.
        images: how many pictures to open in each split; 0 opens all.
    """
    found = list(problems)
    opened = {}
    for split, members in rows.items():
        chosen = _spread(members, images)
        opened[split] = sum(len(sample.images) for sample in chosen)
        limit = card.generation.max_new_tokens
        found += _problem(split, "image", list(_unopened(chosen)))
        found += _problem(split, "answer", [row.sample_id for row in members if not row.answer.strip()])
        found += _problem(split, "length", [row.sample_id for row in members if len(row.answer.split()) > limit])
        found += _problem(split, "answers", [row.sample_id for row in members if _outside(card, row)])
        found += _problem(split, "sample_id", _repeated([row.sample_id for row in members]))
    for left, right in combinations(rows, 2):
        shared = _sources(rows[left]) & _sources(rows[right])
        found += _problem(f"{left}+{right}", "sources", sorted(shared))
    return CheckReport(
        task=card.name, rows={split: len(m) for split, m in rows.items()}, opened=opened, problems=tuple(found)
    )


def _problem(split: str, kind: str, offenders: Sequence[str]) -> list[Problem]:
    return [Problem(split=split, kind=kind, count=len(offenders), first=tuple(offenders[:SHOWN]))] if offenders else []


def _spread(members: Sequence[Sample], count: int) -> Sequence[Sample]:
    if not count or len(members) <= count:
        return members
    return [members[index * len(members) // count] for index in range(count)]


def _unopened(members: Sequence[Sample]) -> Iterator[str]:
    for sample in members:
        for open_image in sample.images:
            try:
                open_image()
            except DmoleError as error:
                yield error.message


def _outside(card: TaskCard, sample: Sample) -> bool:
    """Whether a card with a closed set of answers holds none that is right for a sample without options of its own."""
    asked = card.answers and not sample.details.get("options")
    return bool(asked) and not any(right_answers(card, card.answers, sample.references))


def _sources(members: Sequence[Sample]) -> set[str]:
    return {source for sample in members for source in sample.sources}


def _repeated(names: Sequence[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]
