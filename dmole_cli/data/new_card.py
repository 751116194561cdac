"""Writes a task card for a user's own data: the format, prompt, metric and limits are guessed from the files."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from dmole_cli.artifacts.files import write_text
from dmole_cli.data.card import SPLITS, TaskCard, load_card
from dmole_cli.data.formats._recognition import CAPTION_PROMPT, NAMING_PROMPT, SHORT_PROMPT
from dmole_cli.data.formats.base import PEEKED, Guess
from dmole_cli.data.guessing import guess_format
from dmole_cli.data.invalid_records import InvalidRecord
from dmole_cli.data.loading import EmptySplit, samples
from dmole_cli.data.recipes import LEAST_STEPS, recipe_of, steps_of
from dmole_cli.data.sample import Sample
from dmole_cli.errors import DmoleError

HELD_OUT = (0.1, 0.2, 0.3)  # shares of the images that are tried for each split without a file of its own
SHORT = 3  # maximum number of words of a short answer
MOSTLY = 0.9  # share of short answers from which a task counts as one of short answers

TokenCounter = Callable[[Sequence[str]], Sequence[int]]


@dataclass(frozen=True)
class NewCard:
    """A card that was written.

    Attributes:
        path: the card.
        rows: number of rows per split.
        said: key of the card -> (guess, reason).
        steps: training steps that its recipe makes.
    """

    path: Path
    rows: Mapping[str, int]
    said: Mapping[str, tuple[str, str]]
    steps: int


def new_card(
    path: Path,
    sources: Sequence[Path],
    *,
    images: Path | None = None,
    learning_rate: float,
    count_tokens: TokenCounter | None = None,
    force: bool = False,
) -> NewCard:
    """Write a card for annotation files. All data are read once, so a card that is written is known to work.

    Args:
        path: the card, `.toml`.
        sources: one file (or a folder of the `datasets` library), whose images are divided into splits; two: training and
            test; or three: training, validation and test.
        images: the folder of the images; by default the folders around the first file are searched.
        learning_rate: of the card.
        count_tokens: counts an answer's tokens with the backbone's tokenizer; None estimates them.
        force: overwrite an existing card.

    Raises:
        DmoleError: the card exists, no format fits, a record is invalid, or images are not found.
    """
    _check_arguments(path, sources, force=force)
    name, guess = _guess(sources)
    draft = _Draft(path, name, guess, sources)
    where = _find_images(draft, images, sources[0])
    splits, division = _divide(draft, sources)
    answers = _measure((row for rows in splits.values() for row in rows), count_tokens)
    prompt, metric, reason = _prompt_and_metric(guess, splits["train"], answers)
    limit = _round_up(answers.longest + 2)  # the end of the text, and some room
    batch_size, epochs = recipe_of(len(splits["train"]))
    changes: dict[str, Any] = {"batch_size": batch_size, "epochs": epochs, "learning_rate": learning_rate}
    final = replace(draft, prompt=prompt, metric=metric, limit=limit, **changes)
    card = final.load()  # a card that cannot be read is not written
    steps = steps_of(card.recipe, len(splits["train"]))
    counted = "tokens of the backbone" if count_tokens else "estimated from words and letters; --backbone counts tokens"
    said = {
        "format": (name, guess.why),
        "images": (draft.data.get("images", ""), where),
        "splits": (", ".join(f"{len(rows)} {split}" for split, rows in splits.items()), division),
        "prompt": (prompt, reason),
        "metric": (metric, reason),
        "max_new_tokens": (str(limit), f"the longest answer has about {answers.longest} tokens ({counted})"),
        "recipe": (
            f"{epochs} epoch{'s' if epochs > 1 else ''} in batches of {batch_size}",
            f"{steps} training steps; at least {LEAST_STEPS} are planned",
        ),
        "learning_rate": (
            f"{learning_rate:g}",
            "6e-3, as the built-in tasks, with the embedded backbone; else 1e-4, as D-MoLE",
        ),
    }
    write_text(path, final.text())
    return NewCard(path, {split: len(rows) for split, rows in splits.items()}, said, steps)


def _check_arguments(path: Path, sources: Sequence[Path], *, force: bool) -> None:
    if path.suffix != ".toml":
        raise DmoleError(f"a task card must be a .toml file, not {path}", f"name it {path.name}.toml")
    if path.exists() and not force:
        raise DmoleError(f"the task card {path} exists already", "choose another name, or overwrite it with --force")
    if not 1 <= len(sources) <= len(SPLITS):
        hint = "--from data.jsonl, or --from train.jsonl --from test.jsonl, or --from for train, validation and test"
        raise DmoleError(f"expected one, two or three files, not {len(sources)}", hint)
    for source in sources:
        if not source.exists():
            raise DmoleError(f"{source} does not exist", "check the path after --from")


def _guess(sources: Sequence[Path]) -> tuple[str, Guess]:
    """Name and guess of the format of the first source."""
    name, guess = guess_format(sources[0])
    if guess.source_option and len(sources) > 1:
        hint = (
            "put the files into a folder under the names of their splits (train.parquet, test.parquet): --from FOLDER"
        )
        raise DmoleError(f"{sources[0]} is a data set of its own, and further files are not read", hint)
    return name, guess


# ------------------------------------------------------------------------------------------------ the card


@dataclass(frozen=True)
class _Draft:
    """A card before it is written; `data` is filled in step by step."""

    path: Path
    format: str
    guess: Guess
    sources: Sequence[Path]
    prompt: str = "{question}"
    metric: str = "exact_match"
    limit: int = 16
    learning_rate: float = 1e-4
    batch_size: int = 32
    epochs: int = 1
    data: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.data:
            return
        self.data.update(self.guess.data)
        if self.guess.source_option:
            self.data[self.guess.source_option] = self.relative(self.sources[0])
        else:
            names = {1: ("train",), 2: ("train", "test"), 3: SPLITS}[len(self.sources)]
            self.data.update({name: self.relative(file) for name, file in zip(names, self.sources, strict=True)})
        self.data.setdefault("images", "")

    def relative(self, file: Path) -> str:
        """A path relative to the card's folder if the file is below it, else absolute."""
        folder, absolute = self.path.parent.resolve(), file.resolve()
        return os.path.relpath(absolute, folder) if absolute.is_relative_to(folder) else str(absolute)

    def text(self) -> str:
        """The card as TOML."""
        lines = [
            f"title = {_toml(self.path.stem.replace('_', ' '))}",
            f"format = {_toml(self.format)}",
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
            f"epochs = {self.epochs}",
            f"batch_size = {self.batch_size}",
            f"learning_rate = {self.learning_rate!r}",
        ]
        return "\n".join(lines) + "\n"

    def load(self) -> TaskCard:
        """Load the card from a temporary file, with the path that it is going to have."""
        with tempfile.TemporaryDirectory(prefix="dmole-") as folder:
            file = Path(folder, self.path.name)
            file.write_text(self.text(), encoding="utf-8")
            return load_card(file).updated(path=self.path.absolute())

    def rows(self, split: str) -> Sequence[Sample]:
        """The samples of a split, empty if the card does not declare it."""
        card = self.load()
        return samples(card, split) if card.declares(split) else []


def _toml(value: Any) -> str:
    """A text or a number as TOML. JSON's texts are TOML's, except for DEL, which JSON does not escape."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _find_images(draft: _Draft, images: Path | None, source: Path) -> str:
    """Set the folder of the images in the draft, if there is one; returns how it was found."""
    around = [source.parent, *sorted(p for p in source.parent.iterdir() if p.is_dir()), source.parent.resolve().parent]
    candidates = [images] if images else [draft.path.parent, *around]
    if "folder" in draft.guess.data:
        return _find_folder(draft, candidates, source)
    if "images" in draft.guess.data:
        columns = draft.data["images"]
        return f"columns {columns}" if columns else "the data contain no images"
    rows = draft.rows("train")
    names = [name.removeprefix("file:") for row in islice(rows, PEEKED) for name in row.sources]
    if not names:
        del draft.data["images"]
        return f"the first {min(PEEKED, len(rows))} rows have no image"
    for folder in candidates:
        if all((folder / name).is_file() for name in names):
            draft.data["images"] = draft.relative(folder)
            return f"the first {len(names)} images are there"
    missing = next(name for name in names if not (candidates[0] / name).is_file())
    raise DmoleError(
        f"the image {missing} of {source} is not in {images or f'{source.parent}, in a folder in it, or above it'}",
        "give the folder that the images' names start at with --images",
    )


def _find_folder(draft: _Draft, candidates: Sequence[Path], source: Path) -> str:
    """Set the folder at which the paths in a table's columns start; returns how it was found."""
    problem: DmoleError | None = None
    for folder in candidates:
        draft.data["folder"] = draft.relative(folder)
        try:
            draft.rows("train")
        except InvalidRecord as error:
            if error.kind != "image":
                raise
            problem = problem or error
        else:
            return f"columns {draft.data['images']}, whose files are in {folder}"
    raise DmoleError(
        problem.message if problem else f"the images of {source} are not found",
        "give the folder that the images' paths start at with --images",
    )


def _divide(draft: _Draft, sources: Sequence[Path]) -> tuple[dict[str, Sequence[Sample]], str]:
    """Load all splits, holding out a part of the training file for those without a file; returns how, too."""
    missing = [split for split in ("validation", "test") if not draft.data.get(split)]
    keys = {"validation": "held_out", "test": "held_out_test"}
    if not missing:
        return {split: draft.rows(split) for split in SPLITS}, "each has its own"
    for share in HELD_OUT:
        draft.data.update({keys[split]: share for split in missing})
        try:
            rows = {split: draft.rows(split) for split in SPLITS}
        except EmptySplit:
            continue
        parts = " and ".join(missing)
        return (
            rows,
            f"{parts}: {100 * share:.0f} % of the training data each, by a hash of the content of their images or texts",
        )
    total = len(_undivided(draft, keys.values()))
    raise DmoleError(
        f"{sources[0]} has too few images or texts that differ to hold some out for {' and '.join(missing)} ({total} rows)",
        "give the other splits files of their own: --from train.jsonl --from validation.jsonl --from test.jsonl",
    )


def _undivided(draft: _Draft, keys: Iterable[str]) -> Sequence[Sample]:
    draft.data.update(dict.fromkeys(keys, 0.0))
    return draft.rows("train")


# ------------------------------------------------------------------------------------------------ the answers


@dataclass
class _Answers:
    """Statistics of all answers: their number, the number of short ones, and the tokens of the longest."""

    rows: int = 0
    short: int = 0
    longest: int = 0


def _measure(rows: Iterator[Sample], count_tokens: TokenCounter | None) -> _Answers:
    out = _Answers()
    while block := list(islice(rows, 512)):
        answers = [row.answer for row in block]
        lengths = count_tokens(answers) if count_tokens else [_estimated_tokens(answer) for answer in answers]
        out.rows += len(block)
        out.short += sum(len(answer.split()) <= SHORT for answer in answers)
        out.longest = max(out.longest, *lengths)
    return out


def _estimated_tokens(answer: str) -> int:
    """A generous estimate of an answer's tokens: two per word, or one per three bytes."""
    return max(2 * len(answer.split()), -(-len(answer.encode()) // 3))


def _round_up(tokens: int) -> int:
    """The next multiple of eight."""
    return -(-tokens // 8) * 8


def _prompt_and_metric(guess: Guess, rows: Sequence[Sample], answers: _Answers) -> tuple[str, str, str]:
    """Prompt, metric and the reason; taken from the format's guess if it decides them, else from the samples."""
    short = answers.short >= MOSTLY * answers.rows
    if guess.metric:
        metric, reason = guess.metric, guess.why
    elif all({"box", "width", "height"} <= row.details.keys() for row in islice(rows, PEEKED)):
        metric, reason = "grounding", "records have 'box', 'width' and 'height'"
    elif all(_is_option(row) for row in islice(rows, PEEKED)):
        metric, reason = "multiple_choice", "records have 'options', and answers are one of them"
    else:
        metric = "exact_match" if short else "cider"
        reason = f"{100 * answers.short / answers.rows:.0f} % of the answers have at most {SHORT} words"
    if guess.prompt:
        return guess.prompt, metric, reason
    if not guess.has_question:  # the prompt is the whole instruction
        return NAMING_PROMPT if metric == "exact_match" else CAPTION_PROMPT, metric, reason
    instructed = all("answer" in row.question.lower() for row in islice(rows, PEEKED))
    return SHORT_PROMPT if short and not instructed else "{question}", metric, reason


def _is_option(row: Sample) -> bool:
    """Whether a sample's answer is one of its options, by letter or by text."""
    options = row.details.get("options")
    if not isinstance(options, list) or not options:
        return False
    letters = [chr(ord("A") + number) for number in range(len(options))]
    return row.answer in (*letters, *options)
