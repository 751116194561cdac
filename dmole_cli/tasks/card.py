"""The task card: what a task is, read from one TOML file; the folder of cards is the registry."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from dmole_cli import catalog
from dmole_cli.errors import DmoleError

CARD_FOLDER = Path(__file__).parent
QUESTION = "{question}"
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Generation:
    """How long an answer may be, in tokens of the backbone's tokenizer."""

    max_new_tokens: int = 16
    min_new_tokens: int = 0


@dataclass(frozen=True)
class Recipe:
    """How the task is trained when nothing else is asked for; the learning rate is the experts'."""

    epochs: int = 1
    batch_size: int = 32
    learning_rate: float = 1.5e-3


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
        format: a file name of `dmole_cli/formats`.
        prompt: template of the instruction; `{question}` is replaced by the sample's question.
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
    answers: tuple[str, ...] = ()
    generation: Generation = field(default_factory=Generation)
    recipe: Recipe = field(default_factory=Recipe)
    sizes: Sizes = field(default_factory=Sizes)
    source: Source = field(default_factory=Source)
    reading: Reading = field(default_factory=Reading)
    data: Mapping[str, Any] = field(default_factory=dict)
    path: Path = Path()


def task_names() -> list[str]:
    """List the built-in tasks in alphabetical order (the order of a stream is the configuration's business)."""
    return sorted(path.stem for path in CARD_FOLDER.glob("*.toml"))


def format_names() -> list[str]:
    """List the formats: the files of that shelf that declare `OPTIONS` (one only says which emoji serves what)."""
    return [name for name in catalog.names("formats") if hasattr(catalog.load("formats", name), "OPTIONS")]


def load_card(name_or_path: str | Path) -> TaskCard:
    """Read a task card by its built-in name or from a path to a `.toml` file.

    Raises:
        DmoleError: no such task; the file is not TOML; keys are unknown or values cannot be (all named at once).
    """
    path = _card_path(str(name_or_path))
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DmoleError(f"cannot read the task card {path}: {error}", "docs/tasks.md shows a card") from error
    problems: list[str] = []
    table.setdefault("name", path.stem)
    data = table.pop("data", {})
    values = _read_section(TaskCard, table, where="", problems=problems, skip=("data", "path"))
    if not problems:
        values["data"] = _read_options(values["format"], data, problems=problems)
        problems.extend(_impossible(values))
    if problems:
        listed = "".join(f"\n  - {problem}" for problem in problems)
        raise DmoleError(f"the task card {path} has {len(problems)} problem(s):{listed}", "mend these keys of the card")
    return TaskCard(**values, path=path)


def _card_path(text: str) -> Path:
    if text in task_names():
        return CARD_FOLDER / f"{text}.toml"
    path = Path(text)
    if path.suffix != ".toml":
        known = ", ".join(task_names())
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


def _read_options(name: str, data: Any, *, problems: list[str]) -> dict[str, Any]:
    """Complete the [data] table with the format's defaults; the default's type is the option's type."""
    if name not in format_names():
        problems.append(f"unknown format '{name}' (known: {', '.join(format_names())})")
        return {}
    options: dict[str, Any] = dict(catalog.load("formats", name).OPTIONS)
    if not isinstance(data, dict):
        problems.append("'data' must be a table: [data]")
        return options
    for key, value in data.items():
        if key not in options:
            known_options = ", ".join(options) or "none"
            problems.append(f"unknown key 'data.{key}' (options of the format '{name}': {known_options})")
        else:
            options[key] = _read_value(type(options[key]), value, where=f"data.{key}", problems=problems)
    return options


def _impossible(values: Mapping[str, Any]) -> list[str]:
    """Say which values of the right type cannot be."""
    problems = []
    generation, recipe = values.get("generation", Generation()), values.get("recipe", Recipe())
    sizes = values.get("sizes", Sizes())
    if values["metric"] not in catalog.names("metrics"):
        problems.append(f"unknown metric '{values['metric']}' (known: {', '.join(catalog.names('metrics'))})")
    if not 0 <= generation.min_new_tokens <= generation.max_new_tokens or generation.max_new_tokens < 1:
        problems.append("'generation' must have 0 <= min_new_tokens <= max_new_tokens and max_new_tokens >= 1")
    if recipe.epochs < 1 or recipe.batch_size < 1 or not recipe.learning_rate > 0:
        problems.append("'recipe' must have epochs >= 1, batch_size >= 1 and learning_rate > 0")
    answers = values.get("answers", ())
    if answers and values["metric"] != "exact_match":
        problems.append("'answers' goes with the metric exact_match; multiple choice has its options in the samples")
    folded = {answer.strip().lower() for answer in answers}
    if answers and ("" in folded or len(folded) < max(2, len(answers))):
        problems.append("'answers' must be two or more texts that differ by more than case, none of them empty")
    problems.extend(f"'sizes.{split}' must not be negative" for split in SPLITS if getattr(sizes, split) < 0)
    return problems
