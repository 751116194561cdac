"""`dmole.toml`: the backbone, the ordered tasks and the settings; the order of tasks is written here and nowhere else."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from dmole_cli import catalog
from dmole_cli.errors import DmoleError

DEFAULT_FILE = Path("dmole.toml")
DEFAULT_TASKS = ("easyvqa", "digits", "emoji", "grounding", "satellite")
DEFAULT_UNSEEN = ("counting",)
ROUTING_MODES = ("top-2", "top-1", "batch-vote", "oracle", "always-all")
DECODERS = ("sigmoid", "linear")
STARTS = ("mean", "random")
EVALUATED_SPLITS = ("test", "validation")
PRECISIONS = ("auto", "float32", "bfloat16")
DTYPES = ("float32", "bfloat16", "float16")
ATTENTIONS = ("auto", "sdpa", "eager")
QUANTIZERS = ("none", "4bit", "8bit")


@dataclass(frozen=True)
class ProfileSettings:
    """Stage `profile`.

    Attributes:
        portion: share of the training split that is measured (0..1].
        batch_size: samples of a batch; every batch counts the same.
        sites: `attention`, `linear`, or a regular expression on module paths.
        seed: of the subset. Not the run's: a profile depends on backbone and task alone, whatever the run.
        checkpointing: recompute activations on the way back: less memory, more time, the same profile.
        per_sample: measure each sample's own gradient as well.
    """

    portion: float = 0.01
    batch_size: int = 8
    sites: str = "attention"
    seed: int = 0
    checkpointing: bool = False
    per_sample: bool = False


@dataclass(frozen=True)
class AllocateSettings:
    """Stage `allocate`.

    Attributes:
        budget: `2%` of the backbone's parameters, `sites:50%` of the sites, or `params:3.2M`.
        rank: of an expert.
        alpha: numerator of an expert's scale, alpha / rank.
        vision_floor: least share of the budget for the vision encoder, 0..1.
        score: column of the profile to rank by: `score` or `norm_mean`.
        curriculum: split the budget by the modalities' difficulty; off = by their capacity.
        modalities: towers that may get experts.
    """

    budget: str = "2%"
    rank: int = 8
    alpha: float = 16.0
    vision_floor: float = 0.25
    score: str = "score"
    curriculum: bool = True
    modalities: tuple[str, ...] = ("vision", "language")


@dataclass(frozen=True)
class RouterSettings:
    """Stage `train-router`.

    Attributes:
        decoder: last layer of the autoencoder, `sigmoid` or `linear`.
        start: the decoder's untrained bias, at the `mean` of the features, or `random` as the reference has it.
        hidden: width of its bottleneck.
        epochs: at most.
        batch_size: of its training.
        patience: epochs without a better training loss before it stops.
        held_out: share of the samples kept for the threshold.
        quantile: of the held-out losses that becomes the threshold.
        threshold_scale: factor on that quantile.
        seed: of the autoencoder. Not the run's: a router depends on backbone and task alone, whatever the run.
    """

    decoder: str = "sigmoid"
    start: str = "mean"
    hidden: int = 128
    epochs: int = 1000
    batch_size: int = 1024
    patience: int = 10
    held_out: float = 0.1
    quantile: float = 0.99
    threshold_scale: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class TrainSettings:
    """Stage `train-task`; epochs, batch size and learning rate come from the task's card unless they are set here.

    Attributes:
        epochs: passes over the training split, 0 = the card's.
        batch_size: samples of a step, 0 = the card's.
        learning_rate: peak, 0 = the card's.
        weight_decay: of AdamW.
        warmup: share of the steps in which the rate rises.
        clip: largest norm of the gradient.
        dropout: on the input of the experts while training.
        max_length: tokens of a training sample, template, pictures and answer included; longer ones lose the beginning of
            their question (2048 in the reference). 0 sets no limit.
        transfer: let the nearest earlier expert join, frozen, where its router accepts the sample.
        checkpointing: recompute activations on the way back: less memory, more time, the same expert.
    """

    epochs: int = 0
    batch_size: int = 0
    learning_rate: float = 0.0
    weight_decay: float = 0.01
    warmup: float = 0.03
    clip: float = 1.0
    dropout: float = 0.0
    max_length: int = 0
    transfer: bool = True
    checkpointing: bool = False


@dataclass(frozen=True)
class EvaluateSettings:
    """Stage `evaluate`.

    Attributes:
        batch_size: samples generated at once; no decision depends on it.
        routing: `top-2`, `top-1`, `batch-vote`, `oracle` or `always-all`.
        threshold_scale: factor on every router's stored threshold.
        split: `test`, or `validation`, whose evaluations and reports are kept apart: choices are made there.
    """

    batch_size: int = 64
    routing: str = "top-2"
    threshold_scale: float = 1.0
    split: str = "test"


@dataclass(frozen=True)
class Config:
    """Everything a run is made from.

    Attributes:
        backbone: `embedded`, a folder, or a hub id.
        tasks: names or card paths, in the order in which they arrive.
        unseen: tasks that are evaluated and never trained.
        seed: of the experts, of the order of their training samples and of dropout.
        device: where the backbone computes: `cpu`, `cuda`, `cuda:1`, `mps`; `auto` is cuda if there is one, else the CPU.
        precision: of profiling, training and answering: `float32`, `bfloat16` (autocast; experts and their optimiser stay
            float32), or `auto`: bfloat16 on cuda, float32 elsewhere, and the weights' own type where that is not float32.
            Routing features are computed in the type of the weights, whatever the precision.
        dtype: of the backbone's weights: `float32`, `bfloat16` or `float16`.
        attention: how it is computed: `sdpa`, `eager`, or `auto`, the model's own choice.
        quantize: the backbone's linear modules: `4bit` or `8bit` (by bitsandbytes), or `none`.
        data_root: where relative data paths of cards start, None = beside the card.
        picture_store: megabytes on disk, while a command runs, for encoded pictures that no active expert looks at and that
            are needed more than once; 0 encodes them each time.
        shared: directory of profiles, features and routers that several runs share, None = the run directory.
        method: options of methods by their names, `[method.ewc-lora]` with `weight = 1e3`; each method says which it has.
    """

    backbone: str = "embedded"
    tasks: tuple[str, ...] = DEFAULT_TASKS
    unseen: tuple[str, ...] = DEFAULT_UNSEEN
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    dtype: str = "float32"
    attention: str = "auto"
    quantize: str = "none"
    data_root: str | None = None
    picture_store: int = 1024
    shared: str | None = None
    method: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    profile: ProfileSettings = field(default_factory=ProfileSettings)
    allocate: AllocateSettings = field(default_factory=AllocateSettings)
    router: RouterSettings = field(default_factory=RouterSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)

    def position(self, task: str) -> int:
        """Stage of a task, counted from 1.

        Raises:
            DmoleError: the task is not in the stream.
        """
        if task not in self.tasks:
            raise DmoleError(
                f"task '{task}' is not in the stream ({', '.join(self.tasks)})",
                "list it in `tasks` of the configuration: the order of the stream is written there",
            )
        return self.tasks.index(task) + 1

    def earlier(self, task: str) -> tuple[str, ...]:
        """Tasks that arrive before this one."""
        return self.tasks[: self.position(task) - 1]


def read_config(path: Path | None) -> Config:
    """Read a configuration; without a path, `dmole.toml` of this folder, or the built-in stream where there is none.

    Raises:
        DmoleError: the file is missing, is not TOML, or holds unknown keys or values of the wrong type (all at once).
    """
    if path is None:
        if not DEFAULT_FILE.exists():
            return Config()
        path = DEFAULT_FILE
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DmoleError(f"cannot read {path}: {error}", "pass --config the path of a TOML file") from error
    problems: list[str] = []
    config = _fill(Config(), table, "", problems)
    if not problems and (not config.tasks or len(set(config.tasks)) < len(config.tasks)):
        problems.append("tasks: name each task once, at least one")
    if problems:
        raise DmoleError(
            f"{path} has {len(problems)} problem(s):" + "".join(f"\n  - {p}" for p in problems), "mend these keys"
        )
    return config


def _fill(default: Any, table: Mapping[str, Any], where: str, problems: list[str]) -> Any:
    known = {f.name: getattr(default, f.name) for f in fields(default)}
    values: dict[str, Any] = {}
    for key, value in table.items():
        name = f"{where}{key}"
        if key not in known:
            problems.append(f"{name}: unknown key (known: {', '.join(known)})")
            continue
        current = known[key]
        if isinstance(current, Mapping):
            values[key] = _numbers(value, name, problems)
        elif hasattr(current, "__dataclass_fields__"):
            if isinstance(value, Mapping):
                values[key] = _fill(current, value, f"{name}.", problems)
            else:
                problems.append(f"{name}: a table is expected")
        elif isinstance(current, tuple):
            if isinstance(value, list) and all(isinstance(v, str) for v in value):
                values[key] = tuple(value)
            else:
                problems.append(f"{name}: a list of names is expected")
        elif isinstance(current, float) and isinstance(value, (int, float)) and not isinstance(value, bool):
            values[key] = float(value)
        elif type(value) is type(current) or (current is None and isinstance(value, str)):
            values[key] = value
        else:
            problems.append(f"{name}: {type(current).__name__} expected, not {value!r}")
    return replace(default, **values)


def _numbers(table: Any, where: str, problems: list[str]) -> dict[str, dict[str, float]]:
    """Tables of numbers by name."""
    out: dict[str, dict[str, float]] = {}
    if not isinstance(table, Mapping):
        problems.append(f"{where}: tables of numbers by the methods' names are expected")
        return out
    for name, options in table.items():
        numbers = isinstance(options, Mapping) and all(type(v) in (int, float) for v in options.values())
        if not numbers:
            problems.append(f"{where}.{name}: a table of numbers is expected")
            continue
        out[name] = {key: float(value) for key, value in options.items()}
        if name not in catalog.names("methods"):
            problems.append(f"{where}.{name}: no such method ({', '.join(catalog.names('methods'))})")
    return out


# What a number has to be, by section and key; a comparison with NaN is never true.
RULES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "profile.portion": (lambda v: 0 < v <= 1, "over 0 and up to 1"),
    "profile.batch_size": (lambda v: v >= 1, "1 or more"),
    "allocate.rank": (lambda v: v >= 1, "1 or more"),
    "allocate.alpha": (lambda v: 0 < v < math.inf, "over 0"),
    "allocate.vision_floor": (lambda v: 0 <= v <= 1, "from 0 to 1"),
    "router.hidden": (lambda v: v >= 1, "1 or more"),
    "router.epochs": (lambda v: v >= 1, "1 or more"),
    "router.batch_size": (lambda v: v >= 1, "1 or more"),
    "router.patience": (lambda v: v >= 1, "1 or more"),
    "router.held_out": (lambda v: 0 < v <= 0.5, "over 0 and up to 0.5"),
    "router.quantile": (lambda v: 0 <= v <= 1, "from 0 to 1"),
    "router.threshold_scale": (lambda v: 0 < v < math.inf, "over 0"),
    "train.epochs": (lambda v: v >= 0, "1 or more, or 0 for the card's"),
    "train.batch_size": (lambda v: v >= 0, "1 or more, or 0 for the card's"),
    "train.learning_rate": (lambda v: 0 <= v < math.inf, "over 0, or 0 for the card's"),
    "train.max_length": (lambda v: v >= 0, "1 or more, or 0 for no limit"),
    "train.weight_decay": (lambda v: 0 <= v < math.inf, "0 or more"),
    "train.warmup": (lambda v: 0 <= v <= 1, "from 0 to 1"),
    "train.clip": (lambda v: v > 0, "over 0"),
    "precision": (lambda v: v in PRECISIONS, f"one of {', '.join(PRECISIONS)}"),
    "dtype": (lambda v: v in DTYPES, f"one of {', '.join(DTYPES)}"),
    "attention": (lambda v: v in ATTENTIONS, f"one of {', '.join(ATTENTIONS)}"),
    "quantize": (lambda v: v in QUANTIZERS, f"one of {', '.join(QUANTIZERS)}"),
    "picture_store": (lambda v: v >= 0, "0 or more"),
    "train.dropout": (lambda v: 0 <= v < 1, "from 0 to below 1"),
    "evaluate.routing": (lambda v: v in ROUTING_MODES, f"one of {', '.join(ROUTING_MODES)}"),
    "evaluate.split": (lambda v: v in EVALUATED_SPLITS, f"one of {', '.join(EVALUATED_SPLITS)}"),
    "router.start": (lambda v: v in STARTS, f"one of {', '.join(STARTS)}"),
    "router.decoder": (lambda v: v in DECODERS, f"one of {', '.join(DECODERS)}"),
    "evaluate.batch_size": (lambda v: v >= 1, "1 or more"),
    "evaluate.threshold_scale": (lambda v: 0 <= v < math.inf, "0 or more"),
}


def require_possible(config: Config) -> None:
    """Refuse values that cannot be, wherever they came from.

    Raises:
        DmoleError: names all of them.
    """
    problems = []
    for name, (holds, words) in RULES.items():
        *section, key = name.split(".")
        value = getattr(getattr(config, section[0]) if section else config, key)
        if not holds(value):
            problems.append(f"{name} (--{key.replace('_', '-')}) is {value}, and must be {words}")
    if problems:
        hint = "mend these options, or these keys of the configuration"
        raise DmoleError("; ".join(problems), hint)


def override(settings: Any, **options: Any) -> Any:
    """Settings with every option that was given (is not None) put in its place."""
    return replace(settings, **{key: value for key, value in options.items() if value is not None})
