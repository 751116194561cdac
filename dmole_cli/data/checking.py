"""Reads all of a task's splits once and says what would spoil a run: rows that cannot be used, broken pictures, leaks.

What only a backbone can tell (tokens, tiles) is asked of a `Model`, which the caller hands in; without one, words are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, Protocol

from dmole_cli.artifacts.image_digests import MISSING, ImageDigests
from dmole_cli.data.card import TaskCard
from dmole_cli.data.choices import right_answers
from dmole_cli.data.sample import Sample
from dmole_cli.data.seeds import generator, stable_hash
from dmole_cli.errors import DmoleError
from dmole_cli.progress import Track, untracked

SHOWN = 3
BLOCK = 256  # rows that are looked at together

SENTENCES = {
    "split": "the split cannot be used",
    "record": "a record cannot be used",
    "answer": "an answer is empty",
    "annotation": "an id has no annotation",
    "image": "a picture does not open",
    "length": "an answer is longer than generation.max_new_tokens",
    "answers": "a reference is not among the card's 'answers'",
    "sample_id": "a sample id occurs twice",
    "sources": "the same picture or source item is in both splits",
    "no_image": "a row has no picture",
    "id": "a record's own id occurs twice",
    "truncated": "a training sample is longer than the maximum length",
}
# Worth knowing, and often meant so: they do not fail a check.
NOTES = frozenset({"no_image", "id", "truncated"})
KINDS = {"empty": "answer"}  # what formats call it -> what it is called here


class Model(Protocol):
    """What a backbone says of samples."""

    limit: int  # tokens that a training sample may have; 0 where nothing sets a limit

    def answer_lengths(self, answers: Sequence[str]) -> Sequence[int]:
        """Tokens of each answer."""

    def lengths(self, samples: Sequence[Sample]) -> Sequence[int]:
        """Tokens of each sample as it is trained on."""

    def look(self, sample: Sample) -> Mapping[str, Any]:
        """A sample as the model sees it, JSON values."""


@dataclass(frozen=True)
class Problem:
    """One kind of problem in one split.

    Attributes:
        split: the split, or two joined by `+` for what they share.
        kind: a key of `SENTENCES`.
        count: how many rows (for `sources`: items) have it.
        first: the first few of them, in words.
        of: rows of the split; 0 where a count has no whole.
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
    """What was looked at, and what was found.

    Attributes:
        task: its name.
        rows: usable rows per split.
        opened: pictures that were opened per split, each file once.
        problems: those that fail a check first, then notes.
        looks: samples as the model sees them.
        limit: tokens that a training sample may have, None without a model.
    """

    task: str
    rows: Mapping[str, int]
    opened: Mapping[str, int]
    problems: tuple[Problem, ...] = field(default=())
    looks: tuple[Mapping[str, Any], ...] = ()
    limit: int | None = None

    @property
    def ok(self) -> bool:
        """True when nothing was found that fails a check."""
        return not any(problem.serious for problem in self.problems)


class Findings:
    """Problems that are counted as they are met, the first few kept."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], tuple[int, list[str]]] = {}

    def add(self, split: str, kind: str, names: Sequence[str], *, count: int | None = None) -> None:
        """Count some more; `names` may be fewer than `count`."""
        before, first = self._found.get((split, kind), (0, []))
        kept = [*first, *names[: SHOWN - len(first)]]
        self._found[split, kind] = (before + (len(names) if count is None else count), kept)

    def note(self, split: str) -> Callable[[str, int, Sequence[str]], None]:
        """What formats tell of records that they leave out."""
        return lambda kind, count, first: self.add(split, KINDS.get(kind, kind), list(first), count=count)

    def problems(self, rows: Mapping[str, int]) -> tuple[Problem, ...]:
        """All of them in the order of `SENTENCES`' keys within a split, notes last."""
        # What was left out was a row, too.
        out = {
            split: sum(self._found.get((split, kind), (0, []))[0] for kind in ("record", "annotation"))
            for split in rows
        }
        found = [
            Problem(split, kind, count, tuple(first), of=rows[split] + out[split] if split in rows else 0)
            for (split, kind), (count, first) in self._found.items()
        ]
        order = [*rows, *(f"{left}+{right}" for left, right in combinations(rows, 2))]
        kinds = list(SENTENCES)
        place = {split: number for number, split in enumerate(order)}
        return tuple(sorted(found, key=lambda p: (not p.serious, place.get(p.split, -1), kinds.index(p.kind))))


def check_rows(
    card: TaskCard,
    rows: Mapping[str, Sequence[Sample]],
    *,
    findings: Findings,
    images: int = 0,
    model: Model | None = None,
    looks: int = 0,
    seed: int = 0,
    digests: Mapping[Path, str] | ImageDigests | None = None,
    track: Track = untracked,
) -> CheckReport:
    """Check the loaded splits of a card.

    Args:
        card: the task.
        rows: samples per split.
        findings: what was found while loading them; more is added.
        images: how many rows' pictures to open in each split, evenly spread; 0 opens all.
        model: what only a backbone can tell.
        looks: how many samples to show as the model sees them.
        seed: of their choice.
        digests: of picture files; by default they are read here.
        track: shows progress.
    """
    digests = digests if digests is not None else ImageDigests(Path("never-kept.parquet"))
    looked = {split: _Split(card, split, members, images, model, digests, findings) for split, members in rows.items()}
    for split, part in looked.items():
        for block in track(part.blocks(), f"check {card.name}/{split}", part.count):
            part.check(block)
    for left, right in combinations(looked, 2):
        shared = looked[left].items.keys() & looked[right].items.keys()
        if shared:
            findings.add(f"{left}+{right}", "sources", sorted(looked[right].items[item] for item in shared))
    return CheckReport(
        task=card.name,
        rows={split: len(members) for split, members in rows.items()},
        opened={split: part.opened for split, part in looked.items()},
        problems=findings.problems({split: len(members) for split, members in rows.items()}),
        looks=tuple(_looks(card, rows, model, looks, seed)) if model else (),
        limit=model.limit if model else None,
    )


class _Split:
    """One pass over a split; of every row no more is kept than a few numbers."""

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
        self.items: dict[int, str] = {}  # pictures and other source items: digest -> name
        self._files: set[int] = set()
        self._seen: dict[str, set[int]] = {"sample_id": set(), "id": set()}

    def blocks(self) -> Iterator[range]:
        """Indices of rows that are looked at together."""
        return (range(start, min(start + BLOCK, len(self.members))) for start in range(0, len(self.members), BLOCK))

    def check(self, indices: range) -> None:
        """Look at some rows."""
        rows = [self.members[index] for index in indices]
        self._tell("no_image", [row.sample_id for row in rows if not row.images])
        self._tell("answer", [row.sample_id for row in rows if not row.answer.strip()])
        self._tell("answers", [row.sample_id for row in rows if _outside(self.card, row)])
        self._tell("sample_id", self._again("sample_id", [(row.sample_id, row.sample_id) for row in rows]))
        own = [
            (str(row.details["id"]), f"{row.details['id']} ({row.sample_id})") for row in rows if "id" in row.details
        ]
        self._tell("id", self._again("id", own))
        self._lengths(rows)
        for index, row in zip(indices, rows, strict=True):
            if self._chosen is None or index in self._chosen:
                self._tell("image", list(self._unopened(row)))
            self._keep_items(row)

    def _tell(self, kind: str, names: Sequence[str]) -> None:
        if names:
            self.findings.add(self.name, kind, names)

    def _again(self, what: str, names: Sequence[tuple[str, str]]) -> list[str]:
        """Those that were met before."""
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
        self._tell("length", [f"{row.sample_id} ({count} {unit})" for row, count in pairs if count > limit])
        if self.model and self.model.limit and self.name == "train":
            found = zip(rows, self.model.lengths(rows), strict=True)
            self._tell("truncated", [f"{row.sample_id} ({n} tokens)" for row, n in found if n > self.model.limit])

    def _unopened(self, row: Sample) -> Iterator[str]:
        for number, open_one in enumerate(row.images):
            if len(row.files) == len(row.images):
                file = stable_hash(row.files[number])
                if file in self._files:
                    continue
                self._files.add(file)
            self.opened += 1
            try:
                open_one()
            except DmoleError as error:
                yield error.message

    def _keep_items(self, row: Sample) -> None:
        """Pictures in files are known by their content, whatever their names; everything else by its name."""
        if row.files and len(row.files) == len(row.sources):
            for file, source in zip(row.files, row.sources, strict=True):
                digest = self.digests[file]
                if digest != MISSING:
                    self.items.setdefault(int(digest[:16], 16), source)
        else:
            for source in row.sources:
                self.items.setdefault(stable_hash(source), source)


def _outside(card: TaskCard, sample: Sample) -> bool:
    """Whether a card with a closed set of answers holds none that is right for a sample without options of its own."""
    asked = card.answers and not sample.details.get("options")
    return bool(asked) and not any(right_answers(card, card.answers, sample.references))


def _looks(
    card: TaskCard, rows: Mapping[str, Sequence[Sample]], model: Model, count: int, seed: int
) -> Iterator[Mapping[str, Any]]:
    """Some samples drawn by lot, of training where there is such a split."""
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
