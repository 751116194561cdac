"""The task card: what a task is, read from one TOML file; the folder of cards is the registry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import create_model, field_validator, model_validator

from dmole_cli import catalog
from dmole_cli.errors import DmoleError
from dmole_cli.metrics.base import load_metric
from dmole_cli.settings.declare import Section, setting
from dmole_cli.settings.documents import read_toml
from dmole_cli.settings.model import Names
from dmole_cli.settings.names import SPLITS as SPLITS
from dmole_cli.settings.names import name_problem
from dmole_cli.settings.reading import listed, validated
from dmole_cli.settings.record import as_toml

CARD_FOLDER = Path(__file__).with_name("cards")
QUESTION = "{question}"
MAX_LIKE = 20  # cards that a card is based on, one on the other
SHOWN = 3  # names that a message proposes
SIMILAR = 0.7  # least similarity of these names to the typed one, of 1


class Generation(Section):
    """Length of a prediction, in tokens of the backbone's tokenizer."""

    max_new_tokens: int = setting(16, "maximum number of generated tokens", ge=1)
    min_new_tokens: int = setting(0, "minimum number of generated tokens", ge=0)

    @model_validator(mode="after")
    def _ordered(self) -> Generation:
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError("min_new_tokens must not exceed max_new_tokens")
        return self


class Recipe(Section):
    """Training defaults of the task, used where the settings have 0."""

    epochs: int = setting(1, "passes over the training rows", ge=1)
    batch_size: int = setting(32, "rows per step", ge=1)
    learning_rate: float = setting(1.5e-3, "peak learning rate of the experts", gt=0)
    repeats: int = setting(1, "how often an epoch visits each row; weighs a small task against large ones", ge=1)


class Sizes(Section):
    """Rows of each split."""

    train: int = setting(0, "training rows, 0 for all", ge=0)
    validation: int = setting(0, "validation rows, 0 for all", ge=0)
    test: int = setting(0, "test rows, 0 for all", ge=0)


class Source(Section):
    """Where the data come from."""

    packages: Names = setting((), "pip packages that carry the data")
    licence: str = setting("", "licence of the data")
    citation: str = setting("", "publication to cite")
    url: str = setting("", "where the data are published")


class Reading(Section):
    """Scores to compare a result with, in points (0 to 100); -1 where they were not measured."""

    chance: float = setting(-1.0, "score of a uniform guess over the possible answers")
    question_only: float = setting(-1.0, "best score from the text of the question alone")


class TaskCard(Section):
    """One task of a stream.

    Attributes:
        data: options of the format, completed with the format's defaults.
        path: the file that the card was read from; relative data paths start at its folder.
    """

    name: str = setting(..., "name of the task, the card's file name by default; the only identity a task has")
    format: str = setting(..., "format of the annotations: a file of data/formats or data/synthetic")
    prompt: str = setting(
        ...,
        "template of the instruction: {question} is replaced by the sample's question, and in formats of annotation files any "
        "other {name} by the record's text of that name",
    )
    metric: str = setting(..., "metric that scores predictions: a file of metrics/")
    title: str = setting("", "a few words for tables and figures")
    train_format: str = setting("", "format of the training file, where it differs from the others")
    train_prompt: str = setting(
        "", "prompt of the training file, where it differs: {question} for complete instructions"
    )
    answers: Names = setting(
        (),
        "all possible answers, where these are few and samples have no options of their own; ranked by evaluate --likelihood",
    )
    generation: Generation = Generation()
    recipe: Recipe = Recipe()
    sizes: Sizes = Sizes()
    source: Source = Source()
    reading: Reading = Reading()
    data: Mapping[str, Any] = setting({}, "options of the format")
    path: Path = Path()

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        if problem := name_problem(name):
            raise ValueError(f"the name {problem} (by default it is the name of the card's file)")
        return name

    @model_validator(mode="after")
    def _answers_can_be_ranked(self) -> TaskCard:
        folded = {answer.strip().lower() for answer in self.answers}
        if self.answers and ("" in folded or len(folded) < max(2, len(self.answers))):
            raise ValueError("answers must be two or more texts that differ by more than case, none of them empty")
        return self

    def declares(self, split: str) -> bool:
        """Whether the card says where the rows of a split are; many benchmarks have no validation split."""
        return bool(self.data.get(split, True)) or self.holds_out(split)

    def holds_out(self, split: str) -> bool:
        """Whether a split is the part of the training file that is held out from training."""
        share = {"validation": "held_out", "test": "held_out_test"}.get(split, "")
        return not self.data.get(split) and self.data.get(share, 0) > 0

    def read_as(self, split: str) -> TaskCard:
        """The card by which a split is read: with the format and the prompt of the file that holds its rows."""
        if split != "train" and not self.holds_out(split):
            return self
        return self.updated(format=self.train_format or self.format, prompt=self.train_prompt or self.prompt)


def task_names() -> list[str]:
    """List the built-in tasks in alphabetical order."""
    return sorted(_built_in())


def _built_in() -> dict[str, Path]:
    cards = CARD_FOLDER.rglob("*.toml")
    return {_listed_name(path.relative_to(CARD_FOLDER).with_suffix("").as_posix()): path for path in cards}


def task_name(entry: str) -> str:
    """The name of a task that was typed as a name or as the path of a card: the card's `name`, or else its file's name.

    A name is also a file's: a built-in card in a folder, typed `coin/vizwiz`, has the name `coin-vizwiz`.

    Raises:
        DmoleError: it is not a plain name.
    """
    name = _own_name(Path(entry)) if entry.endswith(".toml") else _listed_name(entry)
    if problem := name_problem(name):
        raise DmoleError(
            f"the task {entry[-100:]!r} has no valid name: it {problem}", "rename the card, or set its key `name`"
        )
    return name


def _listed_name(entry: str) -> str:
    """The name under which a built-in card is listed."""
    return entry.replace("/", "-")


def _own_name(path: Path) -> str:
    try:
        name = read_toml(path).get("name")
    except (OSError, ValueError):  # reported by `load_card`
        name = None
    return name if isinstance(name, str) else path.stem


def same_card(one: str, other: str) -> bool:
    """Whether two entries of one name are the same card, in whatever way they are written.

    Args:
        one: an entry of the stream.
        other: a further entry; a bare name stands for the stream's card.
    """
    if one == other or not other.endswith(".toml"):
        return True
    path = Path(one) if one.endswith(".toml") else _built_in().get(_listed_name(one))
    return path is not None and path.resolve() == Path(other).resolve()


def format_names() -> list[str]:
    """List the formats."""
    return catalog.names("formats")


def load_card(name_or_path: str | Path) -> TaskCard:
    """Read a task card by its built-in name or from a path to a `.toml` file.

    Raises:
        DmoleError: no such task; the file is not TOML; it has unknown keys or invalid values (all reported at once).
    """
    path = _card_path(str(name_or_path))
    table = _read_table(path)
    problems: list[str] = []
    table.setdefault("name", next((name for name, card in _built_in().items() if card == path), path.stem))
    data = table.pop("data", {})
    problems += [f"{key}: unknown key" for key in ("path",) if table.pop(key, None) is not None]
    card = validated(TaskCard, table, problems)
    if card is not None:
        names = [name for name in (card.format, card.train_format) if name]
        card = card.updated(data=_options(names, data, problems), path=path)
        problems += _metric_problems(card)
    if problems or card is None:
        raise DmoleError(
            f"the task card {path} has {len(problems)} problem(s):{listed(problems)}", "fix these keys of the card"
        )
    return card


def card_as_toml(card: TaskCard) -> str:
    """A card that is complete by itself, without `like`; relative data paths stay as they are."""
    data = {key: value for key, value in card.data.items() if value is not None}
    return as_toml(card.updated(path=Path(), data=data))


def _metric_problems(card: TaskCard) -> list[str]:
    metrics = catalog.names("metrics")
    if card.metric not in metrics:
        return [f"unknown metric '{card.metric}' (known: {', '.join(metrics)})"]
    if card.answers and not load_metric(card.metric).CLOSED_ANSWERS:
        fitting = ", ".join(name for name in metrics if load_metric(name).CLOSED_ANSWERS)
        return [f"answers needs the metric {fitting}; samples of multiple choice have their own options"]
    return []


def _options(names: Sequence[str], data: Any, problems: list[str]) -> dict[str, Any]:
    """The [data] table, completed with the defaults of the formats, the first one's last; a default's type is the option's."""
    if unknown := [name for name in names if name not in format_names()]:
        problems += [f"unknown format '{name}' (known: {', '.join(format_names())})" for name in unknown]
        return {}
    options: dict[str, Any] = {}
    for name in reversed(names):
        options |= catalog.load("formats", name).OPTIONS
    kinds = {tuple: Names}
    fields: dict[str, Any] = {
        key: (kinds.get(type(value), type(value)), setting(value, "option of the format"))
        for key, value in options.items()
    }
    section = validated(create_model("data", __base__=Section, **fields), data, found := list[str]())
    problems += [f"data.{problem}" for problem in found]
    return options if section is None else {key: getattr(section, key) for key in options}


def _read_table(path: Path, *, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The card's TOML, laid over that of the card it is `like`."""
    try:
        table = read_toml(path)
    except (OSError, ValueError) as error:
        raise DmoleError(f"cannot read the task card {path}: {error}", "docs/tasks.md shows a card") from error
    like = table.pop("like", None)
    if like is None:
        return table
    if not isinstance(like, str):
        raise DmoleError(f"{path}: like is {like!r}; expected text", "name a task, or the path of its card")
    other = _card_path(like)
    if other in (path, *above):
        raise DmoleError(f"the task card {path} has a circular `like`", "remove `like` from one of the cards")
    if len(above) >= MAX_LIKE:
        raise DmoleError(
            f"the task card {path} is the end of {MAX_LIKE} cards that are `like` one another", "use fewer"
        )
    below = _read_table(other, above=(path, *above))
    below.pop("name", None)  # a name belongs to one card
    return _laid_over(below, table)


def _laid_over(below: Mapping[str, Any], table: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in table.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _laid_over(merged[key], value) if both else value
    return merged


def unknown_task(text: str, own: Sequence[str] = ()) -> DmoleError:
    """The error for a name that no task has; it proposes the nearest names, or lists all.

    Args:
        text: the name.
        own: the user's tasks, listed before the built-in ones.
    """
    cards = [path.name for path in sorted(Path().glob("*.toml")) if path.stem == text]
    names = list(dict.fromkeys([*own, *task_names()]))
    nearest = {
        group: get_close_matches(task_name(text).lower(), group, n=SHOWN, cutoff=SIMILAR)
        for group in (tuple(own), tuple(names))
    }
    near = list(dict.fromkeys([*cards, *(name for found in nearest.values() for name in found)]))
    listed = (
        f"did you mean {' or '.join(near)}? `dmole tasks` lists all tasks"
        if near
        else f"known tasks: {', '.join(names)}"
    )
    return DmoleError(f"unknown task '{text}'", f"{listed}; or give the path of a task card (.toml)")


def is_built_in(name: str) -> bool:
    """Whether a name is that of a built-in task."""
    return task_name(name) in _built_in()


def _card_path(text: str) -> Path:
    cards = _built_in()
    if not text.endswith(".toml") and _listed_name(text) in cards:
        return cards[_listed_name(text)]
    path = Path(text)
    if path.suffix != ".toml":
        raise unknown_task(text)
    try:
        found = path.is_file()
    except OSError as error:
        raise DmoleError(f"no task card at {path}: {error.strerror}", "check the path of the .toml file") from error
    if not found:
        raise DmoleError(f"no task card at {path}", "check the path of the .toml file")
    return path
