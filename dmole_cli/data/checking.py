"""Checks all splits of a task in one pass: invalid records, empty or long answers, broken images, leaks between splits.

Tokens and tiles are counted by a `Model`, which the caller provides; without one, words are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, Protocol

from dmole_cli.artifacts.image_digests import MISSING, ImageDigests
from dmole_cli.data.card import TaskCard
from dmole_cli.data.checked_images import CheckedImages
from dmole_cli.data.choices import right_answers
from dmole_cli.data.sample import Sample
from dmole_cli.data.seeds import generator, stable_hash
from dmole_cli.errors import DmoleError
from dmole_cli.progress import Track, quiet

SHOWN = 3  # offenders that a problem lists
BLOCK = 64  # rows that are checked at a time

SENTENCES = {
    "split": "the split cannot be loaded",
    "no_training": "the card names no training data",
    "test_only": "the card names no training data",
    "record": "a record is invalid",
    "answer": "an answer is empty",
    "annotation": "an id has no annotation",
    "image": "an image cannot be opened",
    "tokens": "a text contains an image token of the backbone",
    "length": "an answer is longer than generation.max_new_tokens",
    "answers": "a reference is not one of the card's 'answers'",
    "sample_id": "a sample id is not unique",
    "sources": "the same image or source item is in both splits",
    "no_image": "a row has no image",
    "id": "a record's own id is not unique",
    "truncated": "a training sample is longer than the maximum length",
}
# Often intended, so they do not fail a check.
NOTES = frozenset({"test_only", "no_image", "id", "truncated"})
KINDS = {"empty": "answer"}  # kind of an invalid record -> kind of the problem, where they differ


class Model(Protocol):
    """Counts the tokens of samples, and shows samples as a backbone receives them."""

    limit: int  # maximum length of a training sample in tokens; 0: unlimited

    def answer_lengths(self, answers: Sequence[str]) -> Sequence[int]:
        """Number of tokens of each answer."""

    def lengths(self, samples: Sequence[Sample]) -> Sequence[int]:
        """Number of tokens of each training sample."""

    def refused(self, samples: Sequence[Sample]) -> Sequence[str]:
        """Errors of samples whose texts the model cannot receive."""

    def look(self, sample: Sample) -> Mapping[str, Any]:
        """A sample as the model receives it, JSON values."""


@dataclass(frozen=True)
class Problem:
    """One kind of problem in one split.

    Attributes:
        split: the split, or two joined by `+` for what they share.
        kind: a key of `SENTENCES`.
        count: number of rows (for `sources`: of items) with the problem.
        first: descriptions of the first few.
        of: number of rows of the split; 0 if the count is not of rows.
    """

    split: str
    kind: str
    count: int
    first: tuple[str, ...]
    of: int = 0

    @property
    def serious(self) -> bool:
        """Whether it fails a check."""
        return self.kind not in NOTES

    def __str__(self) -> str:
        more = f" and {self.count - len(self.first)} more" if self.count > len(self.first) else ""
        share = f" ({self.count} of {self.of}, {100 * self.count / self.of:.1f} %)" if self.of else ""
        return f"{self.split}: {SENTENCES[self.kind]}{share}: {'; '.join(self.first)}{more}"


@dataclass(frozen=True)
class CheckReport:
    """The result of a check.

    Attributes:
        task: the task's name.
        rows: number of valid rows per split.
        opened: number of images that were opened per split, each file once.
        problems: those that fail the check first, then notes.
        looks: samples as the model receives them.
        limit: maximum length of a training sample in tokens (0: unlimited); None without a model.
    """

    task: str
    rows: Mapping[str, int]
    opened: Mapping[str, int]
    problems: tuple[Problem, ...] = field(default=())
    looks: tuple[Mapping[str, Any], ...] = ()
    limit: int | None = None

    @property
    def ok(self) -> bool:
        """Whether the check passes."""
        return not any(problem.serious for problem in self.problems)

    def of_unseen(self) -> CheckReport:
        """The report for a task that is never trained: it needs no training data."""
        kinds = {"no_training": "test_only"}
        problems = [replace(problem, kind=kinds.get(problem.kind, problem.kind)) for problem in self.problems]
        return replace(self, problems=tuple(sorted(problems, key=lambda problem: not problem.serious)))


class Findings:
    """Counts problems and keeps the first few descriptions of each."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], tuple[int, list[str]]] = {}

    def add(self, split: str, kind: str, names: Sequence[str], *, count: int | None = None) -> None:
        """Add `count` problems (default: one per name); `names` describe the first of them."""
        before, first = self._found.get((split, kind), (0, []))
        shown = [*first, *names[: SHOWN - len(first)]]
        self._found[split, kind] = (before + (len(names) if count is None else count), shown)

    def add_invalid(self, split: str, kind: str, count: int, first: Sequence[str]) -> None:
        """Add invalid records that a format skipped (see `invalid_records.Report`)."""
        self.add(split, KINDS.get(kind, kind), list(first), count=count)

    def problems(self, rows: Mapping[str, int]) -> tuple[Problem, ...]:
        """All problems, ordered by split and kind, notes last.

        Args:
            rows: number of valid rows per split.
        """
        skipped = {
            split: sum(self._found.get((split, kind), (0, []))[0] for kind in ("record", "annotation"))
            for split in rows
        }
        found = [
            Problem(split, kind, count, tuple(first), of=rows[split] + skipped[split] if split in rows else 0)
            for (split, kind), (count, first) in self._found.items()
        ]
        order = [*rows, *(f"{left}+{right}" for left, right in combinations(rows, 2))]
        kinds = list(SENTENCES)
        position = {split: number for number, split in enumerate(order)}
        return tuple(sorted(found, key=lambda p: (not p.serious, position.get(p.split, -1), kinds.index(p.kind))))


def check_rows(
    card: TaskCard,
    rows: Mapping[str, Sequence[Sample]],
    *,
    findings: Findings,
    images: int = 0,
    model: Model | None = None,
    digests: Mapping[Path, str] | ImageDigests | None = None,
    track: Track = quiet,
) -> CheckReport:
    """Check the loaded splits of a card.

    Args:
        card: the task.
        rows: samples per split.
        findings: problems that were found while loading them; those found here are added.
        images: number of rows per split whose images are opened, evenly spread; 0 opens all of them.
        model: counts tokens; None counts words.
        digests: digests of image files; None computes them.
        track: shows progress.
    """
    digests = digests if digests is not None else ImageDigests(Path("never-saved.sqlite"))
    splits = {split: _Split(card, split, members, images, model, digests, findings) for split, members in rows.items()}
    for split, part in splits.items():
        for number, block in enumerate(track(part.blocks(), f"check {card.name}/{split}", part.count)):
            part.check(number, block)
    for part in splits.values():  # stored until the whole check is complete
        part.seen_images.close()
    for left, right in combinations(splits, 2):
        shared = splits[left].items.keys() & splits[right].items.keys()
        if shared:
            findings.add(f"{left}+{right}", "sources", sorted(splits[right].items[item] for item in shared))
    counts = {split: len(members) for split, members in rows.items()}
    return CheckReport(
        task=card.name,
        rows=counts,
        opened={split: part.opened for split, part in splits.items()},
        problems=findings.problems(counts),
        limit=model.limit if model else None,
    )


class _Split:
    """One pass over a split; only a few hashes of each row stay in memory."""

    def __init__(
        self,
        card: TaskCard,
        name: str,
        members: Sequence[Sample],
        images: int,
        model: Model | None,
        digests: Mapping[Path, str] | ImageDigests,
        findings: Findings,
    ) -> None:
        self.card, self.name, self.members, self.model = card, name, members, model
        self.digests, self.findings = digests, findings
        self.count, self.opened = -(-len(members) // BLOCK), 0
        every = not images or len(members) <= images
        self._chosen = None if every else {index * len(members) // images for index in range(images)}
        self.seen_images = CheckedImages([card.model_dump(), name, images, len(members), BLOCK])
        self.items: dict[int, str] = {}  # images and other source items: hash -> name
        self._files: set[int] = set()
        self._seen: dict[str, set[int]] = {"sample_id": set(), "id": set()}

    def blocks(self) -> Iterator[range]:
        """Indices of the rows that are checked at a time."""
        return (range(start, min(start + BLOCK, len(self.members))) for start in range(0, len(self.members), BLOCK))

    def check(self, number: int, indices: range) -> None:
        """Check a block of rows."""
        rows = [self.members[index] for index in indices]
        self._add("no_image", [row.sample_id for row in rows if not row.images])
        self._add("answer", [row.sample_id for row in rows if not row.answer.strip()])
        self._add("answers", [row.sample_id for row in rows if _outside(self.card, row)])
        self._add("sample_id", self._duplicates("sample_id", [(row.sample_id, row.sample_id) for row in rows]))
        own = [
            (str(row.details["id"]), f"{row.details['id']} ({row.sample_id})") for row in rows if "id" in row.details
        ]
        self._add("id", self._duplicates("id", own))
        if self.model:
            self._add("tokens", self.model.refused(rows))
        self._lengths(rows)
        with self.seen_images.block(number, rows):
            for index, row in zip(indices, rows, strict=True):
                if self._chosen is None or index in self._chosen:
                    self._add("image", list(self._unopened(row)))
                self._add_items(row)

    def _add(self, kind: str, names: Sequence[str]) -> None:
        if names:
            self.findings.add(self.name, kind, names)

    def _duplicates(self, what: str, names: Sequence[tuple[str, str]]) -> list[str]:
        """Of (key, description) pairs, the descriptions whose key is not new in this split."""
        seen, out = self._seen[what], []
        for key, shown in names:
            digest = stable_hash(key)
            if digest in seen:
                out.append(shown)
            seen.add(digest)
        return out

    def _lengths(self, rows: Sequence[Sample]) -> None:
        limit, unit = self.card.generation.max_new_tokens, "tokens" if self.model else "words"
        answers = [row.answer for row in rows]
        counts = self.model.answer_lengths(answers) if self.model else [len(answer.split()) for answer in answers]
        pairs = list(zip(rows, counts, strict=True))
        self._add("length", [f"{row.sample_id} ({count} {unit})" for row, count in pairs if count > limit])
        if self.model and self.model.limit and self.name == "train":
            found = zip(rows, self.model.lengths(rows), strict=True)
            self._add("truncated", [f"{row.sample_id} ({n} tokens)" for row, n in found if n > self.model.limit])

    def _unopened(self, row: Sample) -> Iterator[str]:
        """Errors of the row's images that cannot be opened; files that other rows share are opened once."""
        for number, open_one in enumerate(row.images):
            if len(row.files) == len(row.images):
                file = stable_hash(row.files[number])
                if file in self._files:
                    continue
                self._files.add(file)
            self.opened += 1
            error = self.seen_images.once(partial(_error_of, open_one))
            if error is not None:
                yield error

    def _add_items(self, row: Sample) -> None:
        """Remember the row's source items: image files by their content, so that copies are found; others by name."""
        if row.files and len(row.files) == len(row.sources):
            for file, source in zip(row.files, row.sources, strict=True):
                digest = self.seen_images.once(partial(self.digests.__getitem__, file))
                if digest != MISSING:
                    self.items.setdefault(int(digest[:16], 16), source)
        else:
            for source in row.sources:
                self.items.setdefault(stable_hash(source), source)


def _error_of(open_one: Callable[[], object]) -> str | None:
    """The error of opening an image; None if it opens."""
    try:
        open_one()
    except DmoleError as error:
        return error.message
    return None


def _outside(card: TaskCard, sample: Sample) -> bool:
    """Whether none of the card's `answers` is correct for a sample without options of its own."""
    closed = card.answers and not sample.details.get("options")
    return bool(closed) and not any(right_answers(card, card.answers, sample.references))


def previews(
    card: TaskCard, rows: Mapping[str, Sequence[Sample]], model: Model, *, count: int, seed: int
) -> Iterator[Mapping[str, Any]]:
    """Yield `count` random samples as the model receives them: of the training split, or of the first without one."""
    split = "train" if "train" in rows else next(iter(rows), None)
    if split is None:
        return
    members = rows[split]
    for index in sorted(generator("look", card.name, seed).sample(range(len(members)), min(count, len(members)))):
        sample = members[index]
        try:
            yield {"sample_id": sample.sample_id, **model.look(sample)}
        except DmoleError as error:
            yield {"sample_id": sample.sample_id, "problem": error.message}
