"""The task card: what a task is, read from one TOML file; the folder of cards is the registry."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

from dmole_cli import catalog
from dmole_cli.errors import DmoleError
from dmole_cli.metrics.base import load_metric

CARD_FOLDER = Path(__file__).with_name("cards")
QUESTION = "{question}"
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Generation:
    """How long an answer may be, in tokens of the backbone's tokenizer."""

    max_new_tokens: int = 16
    min_new_tokens: int = 0


@dataclass(frozen=True)
class Recipe:
    """How the task is trained when nothing else is asked for.

    Attributes:
        epochs: passes over the training rows.
        batch_size: rows of a step.
        learning_rate: peak rate of the experts.
        repeats: how often an epoch holds each row: a small task is weighed against large ones by it.
    """

    epochs: int = 1
    batch_size: int = 32
    learning_rate: float = 1.5e-3
    repeats: int = 1


@dataclass(frozen=True)
class Sizes:
    """Rows of each split; 0 keeps every row that the source has."""

    train: int = 0
    validation: int = 0
    test: int = 0


@dataclass(frozen=True)
class Source:
    """Where the data come from: installed packages, licence, and whom to cite."""

    packages: tuple[str, ...] = ()
    licence: str = ""
    citation: str = ""
    url: str = ""


@dataclass(frozen=True)
class Reading:
    """Two scores in points (0 to 100) that put a result into proportion; -1 where they were never measured.

    `chance` is a uniform guess over the possible answers, `question_only` the best answer from the question's text.
    """

    chance: float = -1.0
    question_only: float = -1.0


@dataclass(frozen=True)
class TaskCard:
    """One task of a stream.

    Attributes:
        name: the file's stem; the only identity a task has.
        format: a file name of `dmole_cli/data/formats`.
        prompt: template of the instruction; `{question}` is replaced by the sample's question, and in formats of files any
            other `{name}` by the record's text of that name.
        train_format: of the training file, where it has another format than the rest.
        train_prompt: of the training file, where it differs: `{question}` for instructions that are whole already.
        metric: a file name of `dmole_cli/metrics`.
        title: a few words for tables and figures.
        answers: every answer that the task can have, where that is a short list and samples have no options of their own;
            empty for an open task. Nothing but `evaluate --likelihood` looks at it, to rank the right one among them.
        data: the format's own options, complete with the format's defaults.
        path: the file that the card was read from; relative data paths start at its folder.
    """

    name: str
    format: str
    prompt: str
    metric: str
    title: str = ""
    train_format: str = ""
    train_prompt: str = ""
    answers: tuple[str, ...] = ()
    generation: Generation = field(default_factory=Generation)
    recipe: Recipe = field(default_factory=Recipe)
    sizes: Sizes = field(default_factory=Sizes)
    source: Source = field(default_factory=Source)
    reading: Reading = field(default_factory=Reading)
    data: Mapping[str, Any] = field(default_factory=dict)
    path: Path = Path()

    def declares(self, split: str) -> bool:
        """Whether the card says where the rows of a split are; many benchmarks have no validation split."""
        return bool(self.data.get(split, True)) or self.holds_out(split)

    def holds_out(self, split: str) -> bool:
        """Whether a split is the part of the training file that is set aside from training."""
        share = {"validation": "held_out", "test": "held_out_test"}.get(split, "")
        return not self.data.get(split) and self.data.get(share, 0) > 0

    def read_as(self, split: str) -> TaskCard:
        """The card by which a split is read: with the format and the prompt of the file that holds its rows."""
        if split != "train" and not self.holds_out(split):
            return self
        return replace(self, format=self.train_format or self.format, prompt=self.train_prompt or self.prompt)


def task_names() -> list[str]:
    """List the built-in tasks in alphabetical order (the order of a stream is the configuration's business)."""
    return sorted(_built_in())


def _built_in() -> dict[str, Path]:
    cards = CARD_FOLDER.rglob("*.toml")
    return {task_name(path.relative_to(CARD_FOLDER).with_suffix("").as_posix()): path for path in cards}


def task_name(entry: str) -> str:
    """The name of a task that was typed as a name or as the path of a card.

    A name is also a file's: a built-in card in a folder, typed `coin/vizwiz`, has the name `coin-vizwiz`.
    """
    return Path(entry).stem if entry.endswith(".toml") else entry.replace("/", "-")


def format_names() -> list[str]:
    """List the formats."""
    return catalog.names("formats")


def load_card(name_or_path: str | Path) -> TaskCard:
    """Read a task card by its built-in name or from a path to a `.toml` file.

    Raises:
        DmoleError: no such task; the file is not TOML; keys are unknown or values cannot be (all named at once).
    """
    path = _card_path(str(name_or_path))
    table = _read_table(path)
    problems: list[str] = []
    table.setdefault("name", next((name for name, card in _built_in().items() if card == path), path.stem))
    data = table.pop("data", {})
    values = _read_section(TaskCard, table, where="", problems=problems, skip=("data", "path"))
    if not problems:
        formats = [values["format"], values.get("train_format", "")]
        values["data"] = _read_options([name for name in formats if name], data, problems=problems)
        problems.extend(_impossible(values))
    if problems:
        listed = "".join(f"\n  - {problem}" for problem in problems)
        raise DmoleError(f"the task card {path} has {len(problems)} problem(s):{listed}", "mend these keys of the card")
    return TaskCard(**values, path=path)


def _read_table(path: Path, *, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The card's TOML, laid over that of the card it is `like`."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DmoleError(f"cannot read the task card {path}: {error}", "docs/tasks.md shows a card") from error
    like = table.pop("like", None)
    if like is None:
        return table
    other = _card_path(like if isinstance(like, str) else "")
    if other in (path, *above):
        raise DmoleError(f"the task card {path} is like itself", "take `like` out of one of the cards")
    return _laid_over(_read_table(other, above=(path, *above)), table)


def _laid_over(below: Mapping[str, Any], table: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in table.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _laid_over(merged[key], value) if both else value
    return merged


def _card_path(text: str) -> Path:
    cards = _built_in()
    if not text.endswith(".toml") and task_name(text) in cards:
        return cards[task_name(text)]
    path = Path(text)
    if path.suffix != ".toml":
        known = ", ".join(sorted(cards))
        raise DmoleError(f"unknown task '{text}'", f"known tasks: {known}; or give the path of a task card (.toml)")
    if not path.is_file():
        raise DmoleError(f"no task card at {path}", "check the path of the .toml file")
    return path


def _read_section(
    schema: type, table: Mapping[str, Any], *, where: str, problems: list[str], skip: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Check a table against a dataclass and give its values; what does not fit is appended to `problems`."""
    kinds = {name: kind for name, kind in get_type_hints(schema).items() if name not in skip}
    values: dict[str, Any] = {}
    for key in table:
        if key not in kinds:
            problems.append(f"unknown key '{where}{key}' (known: {', '.join(kinds)})")
    for entry in fields(schema):
        if entry.name in skip:
            continue
        if entry.name not in table:
            if entry.default is MISSING and entry.default_factory is MISSING:
                problems.append(f"'{where}{entry.name}' is missing")
            continue
        values[entry.name] = _read_value(
            kinds[entry.name], table[entry.name], where=f"{where}{entry.name}", problems=problems
        )
    return values


def _read_value(kind: Any, value: Any, *, where: str, problems: list[str]) -> Any:
    if isinstance(kind, type) and is_dataclass(kind):
        if not isinstance(value, dict):
            problems.append(f"'{where}' must be a table: [{where}]")
            return None
        before = len(problems)
        values = _read_section(kind, value, where=f"{where}.", problems=problems)
        return kind(**values) if len(problems) == before else None
    if kind == tuple[str, ...]:
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            problems.append(f"'{where}' must be a list of texts, not {value!r}")
            return ()
        return tuple(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    # type() and not isinstance(): a TOML boolean would pass as an integer.
    if type(value) is not kind:
        names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
        problems.append(f"'{where}' must be {names.get(kind, kind)}, not {value!r}")
    return value


def _read_options(names: Sequence[str], data: Any, *, problems: list[str]) -> dict[str, Any]:
    """Complete the [data] table with the defaults of the formats, the first one's last; a default's type is the option's."""
    options: dict[str, Any] = {}
    for name in reversed(names):
        if name not in format_names():
            problems.append(f"unknown format '{name}' (known: {', '.join(format_names())})")
            return {}
        options |= catalog.load("formats", name).OPTIONS
    if not isinstance(data, dict):
        problems.append("'data' must be a table: [data]")
        return options
    for key, value in data.items():
        if key not in options:
            of = " and ".join(f"'{name}'" for name in names)
            problems.append(f"unknown key 'data.{key}' (options of the format {of}: {', '.join(options) or 'none'})")
        else:
            options[key] = _read_value(type(options[key]), value, where=f"data.{key}", problems=problems)
    return options


def _impossible(values: Mapping[str, Any]) -> list[str]:
    """Say which values of the right type cannot be."""
    problems = []
    generation, recipe = values.get("generation", Generation()), values.get("recipe", Recipe())
    sizes = values.get("sizes", Sizes())
    answers, metrics = values.get("answers", ()), catalog.names("metrics")
    if values["metric"] not in metrics:
        problems.append(f"unknown metric '{values['metric']}' (known: {', '.join(metrics)})")
    elif answers and not load_metric(values["metric"]).CLOSED_ANSWERS:
        fitting = ", ".join(name for name in metrics if load_metric(name).CLOSED_ANSWERS)
        problems.append(f"'answers' needs the metric {fitting}; multiple choice has its options in the samples")
    if not 0 <= generation.min_new_tokens <= generation.max_new_tokens or generation.max_new_tokens < 1:
        problems.append("'generation' must have 0 <= min_new_tokens <= max_new_tokens and max_new_tokens >= 1")
    if min(recipe.epochs, recipe.batch_size, recipe.repeats) < 1 or not recipe.learning_rate > 0:
        problems.append("'recipe' must have epochs >= 1, batch_size >= 1, repeats >= 1 and learning_rate > 0")
    folded = {answer.strip().lower() for answer in answers}
    if answers and ("" in folded or len(folded) < max(2, len(answers))):
        problems.append("'answers' must be two or more texts that differ by more than case, none of them empty")
    problems.extend(f"'sizes.{split}' must not be negative" for split in SPLITS if getattr(sizes, split) < 0)
    return problems
