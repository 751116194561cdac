"""Writes a task card for a user's own data: the format, prompt, metric and limits are guessed from what the files hold."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from dmole_cli.artifacts.files import replacing
from dmole_cli.data.card import SPLITS, TaskCard, load_card
from dmole_cli.data.guessing import PEEKED, SAY_SHORT, Guess, guess_format
from dmole_cli.data.sample import Sample
from dmole_cli.errors import DmoleError

SHARES = (0.1, 0.2, 0.3)  # of the pictures, for each split that has no file of its own
SHORT = 3  # words of a short answer
OFTEN = 0.9  # share of the answers that must be short


@dataclass(frozen=True)
class NewCard:
    """A card that was written.

    Attributes:
        path: of the card.
        rows: per split.
        said: what was guessed -> (the guess, why).
    """

    path: Path
    rows: Mapping[str, int]
    said: Mapping[str, tuple[str, str]]


def new_card(
    path: Path,
    sources: Sequence[Path],
    *,
    images: Path | None = None,
    learning_rate: float,
    count_tokens: Callable[[Sequence[str]], Sequence[int]] | None = None,
    force: bool = False,
) -> NewCard:
    """Write a card for files of annotations; everything is read once, so that the card is known to work.

    Args:
        path: of the card, `.toml`.
        sources: one file (or folder, of a data set of the `datasets` library), whose pictures are divided into splits; or
            two, training and test; or three, training, validation and test.
        images: the folder that pictures' names start at; by default it is looked for around the first file.
        learning_rate: the card's.
        count_tokens: of answers, by the backbone; without it their number is estimated from words and letters.
        force: overwrite a card that is there.

    Raises:
        DmoleError: the card is there already, no format fits, a record cannot be used, or pictures are not found.
    """
    if path.suffix != ".toml":
        raise DmoleError(f"a card is a .toml file, not {path}", f"--new {path.name}.toml")
    if path.exists() and not force:
        raise DmoleError(f"the task card {path} is there already", "choose another name, or overwrite it with --force")
    if not 1 <= len(sources) <= len(SPLITS):
        hint = "--from data.jsonl, or --from train.jsonl --from test.jsonl, or --from for train, validation and test"
        raise DmoleError(f"{len(sources)} files are not one, two or three", hint)
    for source in sources:
        if not source.exists():
            raise DmoleError(f"there is no {source}", "check the path after --from")
    guess = guess_format(sources[0])
    draft = _Draft(path, guess, sources)
    folder, where = _pictures(draft, images, sources[0])
    draft.data["images"] = folder if guess.format != "hugging_face" else draft.data["images"]
    if not draft.data["images"]:
        draft.data.pop("images")
    splits, divided = _divided(draft, sources)
    measured = _measure((row for rows in splits.values() for row in rows), count_tokens)
    prompt, metric, because = _asked(guess, splits["train"], measured)
    limit = _limit(measured)
    counted = "tokens of the backbone" if count_tokens else "estimated from words and letters; --backbone counts tokens"
    said = {
        "format": (guess.format, guess.why),
        "images": (draft.data.get("images", ""), where),
        "splits": (", ".join(f"{len(rows)} {split}" for split, rows in splits.items()), divided),
        "prompt": (prompt, because),
        "metric": (metric, because),
        "max_new_tokens": (str(limit), f"the longest answer has about {measured.longest} tokens ({counted})"),
        "learning_rate": (
            f"{learning_rate:g}",
            "of the built-in stream with the embedded backbone, 1e-4 else (D-MoLE's)",
        ),
    }
    final = replace(draft, prompt=prompt, metric=metric, limit=limit, learning_rate=learning_rate)
    text = final.text()
    _loaded(final)  # a card that cannot be read is not written
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return NewCard(path, {split: len(rows) for split, rows in splits.items()}, said)


# ------------------------------------------------------------------------------------------------ the card


@dataclass(frozen=True)
class _Draft:
    """A card that is being made."""

    path: Path
    guess: Guess
    sources: Sequence[Path]
    prompt: str = "{question}"
    metric: str = "exact_match"
    limit: int = 16
    learning_rate: float = 1e-4
    data: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.data:
            return
        self.data.update(self.guess.data)
        if self.guess.format == "hugging_face":
            self.data["dataset"] = self.place(self.sources[0])
        elif self.guess.format == "scienceqa":
            self.data["problems"] = self.place(self.sources[0])
        else:
            names = {1: ("train",), 2: ("train", "test"), 3: SPLITS}[len(self.sources)]
            self.data.update({name: self.place(file) for name, file in zip(names, self.sources, strict=True)})
        self.data.setdefault("images", "")

    def place(self, file: Path) -> str:
        """A path as the card says it: from its own folder on, where the file lies there; else whole."""
        folder, whole = self.path.parent.resolve(), file.resolve()
        return os.path.relpath(whole, folder) if whole.is_relative_to(folder) else str(whole)

    def text(self) -> str:
        """The card."""
        lines = [
            f"title = {_toml(self.path.stem.replace('_', ' '))}",
            f"format = {_toml(self.guess.format)}",
            f"prompt = {_toml(self.prompt)}",
            f"metric = {_toml(self.metric)}",
            "",
            "[data]  # relative to --data-root, else to this card",
            *(f"{key} = {_toml(value)}" for key, value in self.data.items()),
            "",
            "[generation]",
            f"max_new_tokens = {self.limit}",
            "",
            "[recipe]",
            "epochs = 1",
            "batch_size = 32",
            f"learning_rate = {self.learning_rate!r}",
        ]
        return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    """A text or a number as TOML: a JSON text is one of TOML's, too, but for the one character that JSON leaves as it is."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _loaded(draft: _Draft) -> TaskCard:
    """The draft as a card is read, before it is written in its place."""
    with tempfile.TemporaryDirectory(prefix="dmole-") as folder:
        file = Path(folder, draft.path.name)
        file.write_text(draft.text(), encoding="utf-8")
        return load_card(file).updated(path=draft.path.absolute())


def _rows(draft: _Draft, split: str) -> Sequence[Sample]:
    from dmole_cli.data.loading import samples

    card = _loaded(draft)
    return samples(card, split) if card.declares(split) else []


def _pictures(draft: _Draft, images: Path | None, source: Path) -> tuple[str, str]:
    """The folder that pictures' names start at, as the card says it, and how it was found."""
    if draft.guess.format == "hugging_face":
        return "", f"columns {draft.data['images']}" if draft.data["images"] else "no column holds pictures"
    rows = _rows(draft, "train")
    names = [name.removeprefix("file:") for row in islice(rows, PEEKED) for name in row.sources]
    if not names:
        return "", f"the first {min(PEEKED, len(rows))} rows have no picture"
    around = [source.parent, *sorted(p for p in source.parent.iterdir() if p.is_dir()), source.parent.resolve().parent]
    candidates = [images] if images else [draft.path.parent, *around]
    for folder in candidates:
        if all((folder / name).is_file() for name in names):
            return draft.place(folder), f"the first {len(names)} pictures are there"
    missing = next(name for name in names if not (candidates[0] / name).is_file())
    raise DmoleError(
        f"the picture {missing} of {source} is not in {images or f'{source.parent}, in a folder in it, or above it'}",
        "say with --images which folder the pictures' names start at",
    )


def _divided(draft: _Draft, sources: Sequence[Path]) -> tuple[dict[str, Sequence[Sample]], str]:
    """The rows of every split, parts of the training file set aside for those without one; and how."""
    wanting = [split for split in ("validation", "test") if not draft.data.get(split)]
    keys = {"validation": "held_out", "test": "held_out_test"}
    if not wanting:
        return {split: _rows(draft, split) for split in SPLITS}, "each has its own"
    for share in SHARES:
        draft.data.update({keys[split]: share for split in wanting})
        try:
            rows = {split: _rows(draft, split) for split in SPLITS}
        except DmoleError as error:
            if "has no" not in error.message:
                raise
            continue
        parts = " and ".join(wanting)
        return rows, f"{parts}: {100 * share:.0f} % of the training pictures each, by a hash of their names"
    raise DmoleError(
        f"{sources[0]} has too few pictures to set some aside for {' and '.join(wanting)}",
        "give the other splits their own files: --from train.jsonl --from validation.jsonl --from test.jsonl",
    )


# ------------------------------------------------------------------------------------------------ the answers


@dataclass
class _Measured:
    """What all answers are like."""

    rows: int = 0
    short: int = 0
    longest: int = 0


def _measure(rows: Iterator[Sample], count_tokens: Callable[[Sequence[str]], Sequence[int]] | None) -> _Measured:
    out = _Measured()
    while block := list(islice(rows, 512)):
        answers = [row.answer for row in block]
        lengths = count_tokens(answers) if count_tokens else [_estimated(answer) for answer in answers]
        out.rows += len(block)
        out.short += sum(len(answer.split()) <= SHORT for answer in answers)
        out.longest = max(out.longest, *lengths)
    return out


def _estimated(answer: str) -> int:
    """Tokens of an answer, rather too many: two a word, or one for three letters."""
    return max(2 * len(answer.split()), -(-len(answer.encode()) // 3))


def _limit(measured: _Measured) -> int:
    """New tokens: the longest answer, its end, and some room, in steps of eight."""
    return -(-(measured.longest + 2) // 8) * 8


def _asked(guess: Guess, rows: Sequence[Sample], measured: _Measured) -> tuple[str, str, str]:
    """Prompt and metric, and why."""
    short = measured.short >= OFTEN * measured.rows
    why = f"{100 * measured.short / measured.rows:.0f} % of the answers have at most {SHORT} words"
    metric = guess.metric
    if metric:
        why = f"as data of the format {guess.format} are scored" if guess.format != "question_answer" else guess.why
    elif all({"box", "width", "height"} <= row.details.keys() for row in islice(rows, PEEKED)):
        metric, why = "grounding", "records have 'box', 'width' and 'height'"
    elif all(_chosen(row) for row in islice(rows, PEEKED)):
        metric, why = "multiple_choice", "records have 'options', and answers are one of them"
    else:
        metric = "exact_match" if short else "cider"
    if guess.prompt:
        return guess.prompt, metric, why
    instructed = all("answer" in row.question.lower() for row in islice(rows, PEEKED))
    return f"{{question}} {SAY_SHORT}" if short and not instructed else "{question}", metric, why


def _chosen(row: Sample) -> bool:
    """Whether a row's answer is one of its options, by letter or by text."""
    options = row.details.get("options")
    if not isinstance(options, list) or not options:
        return False
    letters = [chr(ord("A") + number) for number in range(len(options))]
    return row.answer in (*letters, *options)
