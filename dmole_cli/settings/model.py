"""All settings of a run, one section per stage. `tasks` alone defines the order of the stream."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from dmole_cli import catalog
from dmole_cli.errors import DmoleError
from dmole_cli.settings.budget import parse_budget
from dmole_cli.settings.declare import Section, setting
from dmole_cli.settings.serve import ServeSettings

DEFAULT_TASKS = ("easyvqa", "digits", "emoji", "grounding", "satellite")
DEFAULT_UNSEEN = ("counting",)
AUTO = "auto"
# The rank that alpha counts for, and that a budget in sites is measured at, where sites have ranks of their own.
REFERENCE_RANK = 8


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _as_share(value: Any) -> Any:
    """`25%` as 0.25; a number is left as it is."""
    if not isinstance(value, str):
        return value
    number = value.strip()
    try:
        return float(number[:-1]) / 100 if number.endswith("%") else float(number)
    except ValueError:
        return value


def _as_rank(value: Any) -> Any:
    """A rank of 1 or more, also as a text, or `auto`."""
    number = int(value) if isinstance(value, str) and value.isdecimal() else value
    if number != AUTO and not (isinstance(number, int) and not isinstance(number, bool) and number >= 1):
        raise ValueError(f"{value} is not a rank; expected 1 or more, or auto")
    return number


Names = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]
Share = Annotated[float, BeforeValidator(_as_share)]
Modalities = Annotated[tuple[Literal["vision", "language"], ...], BeforeValidator(_as_tuple), Field(min_length=1)]

Rank = Annotated[int | Literal["auto"], BeforeValidator(_as_rank)]

# Samples per micro-batch: a number of 1 or more, 0 or `auto`.
MICRO_BATCH = re.compile(r"auto|\d{1,9}")
CHECKPOINTING = "recompute activations in the backward pass: less memory, more time, the same result"


class ProfileSettings(Section):
    """Stage `profile`."""

    portion: float = setting(0.01, "share of the training split that is measured", gt=0, le=1)
    batch_size: int = setting(8, "samples per batch; every batch has the same weight", ge=1)
    sites: str = setting(
        "attention", "candidate sites: attention, linear, or a regular expression that is searched in module paths"
    )
    # Independent of the run's seed: a profile depends on backbone and task alone.
    seed: int = setting(0, "seed of the measured subset", option="--profile-seed", in_header="never")
    # Recomputed activations are bit-identical, so the setting does not shape the profile.
    checkpointing: bool = setting(False, CHECKPOINTING, in_header="never")
    per_sample: bool = setting(
        False,
        "add the columns sample_norm_mean and sample_norm_std: norms of per-sample gradients",
        in_header="when set",
    )
    spectrum: bool = setting(
        False,
        "add the column spectrum: the 32 largest singular values of each site's accumulated gradient",
        in_header="when set",
    )


class AllocateSettings(Section):
    """Stage `allocate`."""

    budget: str = setting(
        "2%",
        "parameters that a task may add: 2% of the backbone's, sites:50% of the candidate sites, or params:64k",
        expected="a budget like 2%, sites:50% or params:3.2M",
    )
    rank: Rank = setting(
        8,
        "rank of an expert, or auto: each site gets the rank that its sensitivity pays for",
        expected="1 or more, or auto",
    )
    max_rank: int = setting(32, "highest rank of a site with rank auto", in_header="when set", ge=1)
    utility: Literal["log", "spectrum"] = setting(
        "log",
        "with rank auto, what rank r of a site is worth: its score x log2(1 + r), or the sum of the r largest singular values "
        "of its gradient (profile --spectrum)",
        in_header="when set",
    )
    alpha: float = setting(
        16.0, f"numerator of an expert's scale, alpha / rank; alpha / {REFERENCE_RANK} with rank auto", gt=0
    )
    vision_floor: Share = setting(
        0.25, "minimum share of the budget for the vision encoder, as 0.25 or 25%", ge=0, le=1
    )
    score: Literal["score", "norm_mean"] = setting("score", "profile column that ranks the sites")
    curriculum: bool = setting(
        True, "split the budget between the modalities by their difficulty instead of their capacity"
    )
    modalities: Modalities = setting(("vision", "language"), "modalities that may get experts; repeatable")

    @property
    def reference_rank(self) -> int:
        """The rank that alpha counts for, and that a budget in sites is measured at."""
        return REFERENCE_RANK if self.rank == AUTO else int(self.rank)

    @property
    def scale(self) -> float:
        """The factor on B A x of an expert, the same at all sites."""
        return self.alpha / self.reference_rank

    @field_validator("budget")
    @classmethod
    def _parsed(cls, budget: str) -> str:
        try:
            parse_budget(budget)
        except DmoleError as error:
            raise ValueError(f"{error.message}; {error.hint}") from error
        return budget


class RouterSettings(Section):
    """Stage `train-router`."""

    decoder: Literal["sigmoid", "linear"] = setting("sigmoid", "last layer of the autoencoder")
    start: Literal["mean", "random"] = setting(
        "mean", "initial bias of the decoder: the mean of the features, or random as in the reference implementation"
    )
    hidden: int = setting(128, "width of the bottleneck", ge=1)
    epochs: int = setting(1000, "maximum number of epochs", ge=1)
    batch_size: int = setting(1024, "samples per step", ge=1)
    patience: int = setting(10, "epochs without a lower training loss before training stops", ge=1)
    held_out: float = setting(0.1, "share of the samples held out for the threshold", gt=0, le=0.5)
    quantile: float = setting(0.99, "quantile of the held-out losses that the threshold is a multiple of", ge=0, le=1)
    # Of the rules that docs/method.md compares (Routers), the one whose routes depend least on the exact threshold.
    threshold_scale: float = setting(2.0, "threshold over that quantile; 1 is the edge of the task's own losses", gt=0)
    # Independent of the run's seed: a router depends on backbone and task alone.
    seed: int = setting(0, "seed of the autoencoder", option="--router-seed")


class TrainSettings(Section):
    """Stage `train-task`; 0 epochs, batch size or learning rate stand for the values of the task's card."""

    epochs: int = setting(
        0, "passes over the training split, 0 for the card's", expected="1 or more, or 0 for the card's", ge=0
    )
    batch_size: int = setting(0, "samples per step, 0 for the card's", expected="1 or more, or 0 for the card's", ge=0)
    learning_rate: float = setting(
        0.0, "peak learning rate, 0 for the card's", expected="over 0, or 0 for the card's", ge=0
    )
    weight_decay: float = setting(0.01, "weight decay of AdamW", ge=0)
    warmup: float = setting(0.03, "share of the steps in which the learning rate rises", ge=0, le=1)
    clip: float = setting(1.0, "maximum norm of the gradient", gt=0, allow_inf_nan=True)
    dropout: float = setting(0.0, "dropout on the input of the experts while training", ge=0, lt=1)
    max_length: int = setting(
        0,
        "maximum tokens of a training sample (2048 in the reference implementation), 0 for no limit; the question of a longer "
        "sample is truncated from the left",
        expected="1 or more, or 0 for no limit",
        in_header="when set",
        ge=0,
    )
    # A rule of methods with transfer experts, which record it themselves.
    transfer: bool = setting(
        True, "activate the nearest earlier expert, frozen, for samples that its router accepts", in_header="never"
    )
    training_vote: Literal["sample", "batch"] = setting(
        "sample",
        "who chooses the transfer expert: each training sample, or the whole batch by vote, as in the reference implementation",
        in_header="never",
    )
    checkpointing: bool = setting(False, CHECKPOINTING, in_header="never")
    # The loss of a step is the same for every division; its last bits are not.
    micro_batch: str = setting(
        "0",
        "samples that pass through the model together; a step of more is divided; 0 for whole steps, auto for the largest "
        "number that fits into memory",
        expected="1 or more, 0 for whole steps, or auto",
        in_header="never",
    )
    save_every: float = setting(
        300.0,
        "seconds between two checkpoints of a task's training, from which an interrupted run goes on",
        in_header="never",
        recorded=False,
        ge=0,
    )
    log_to: Literal["none", "tensorboard", "trackio", "wandb"] = setting(
        "none", "where the figures of every step are shown, beside `training/`", in_header="never", recorded=False
    )

    @field_validator("micro_batch", mode="before")
    @classmethod
    def _micro_batch(cls, value: Any) -> Any:
        text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
        if isinstance(text, str) and not MICRO_BATCH.fullmatch(text):
            raise ValueError("must be 1 or more, 0 for whole steps, or auto")
        return text


class EvaluateSettings(Section):
    """Stage `evaluate`."""

    # Recorded only where it shapes the result, which is with routing by batch vote.
    batch_size: int = setting(
        64, "samples per batch; only the routing batch-vote depends on it", in_header="never", ge=1
    )
    # Both are recorded for methods that have routers.
    routing: Literal["top-2", "top-1", "as-trained", "batch-vote", "oracle", "always-all"] = setting(
        "top-2", "rule that chooses a sample's active experts", in_header="never"
    )
    threshold_scale: float = setting(1.0, "factor on every router's threshold", in_header="never", ge=0)
    split: Literal["test", "validation"] = setting(
        "test", "split that is evaluated; validation results are stored and reported separately", in_header="never"
    )


class Settings(Section):
    """Everything that a run depends on."""

    backbone: str = setting("embedded", "backbone: `embedded`, a folder written by save_pretrained, or a hub id")
    tasks: Names = setting(DEFAULT_TASKS, "tasks in the order in which they arrive: names, or paths of task cards")
    unseen: Names = setting(DEFAULT_UNSEEN, "tasks that are evaluated and never trained")
    removed: Names = setting((), "tasks that were taken out of the stream; written by `dmole experts remove`")
    seed: int = setting(0, "seed of the run: experts, order of the training samples, dropout")
    device: str = setting(
        "auto",
        "device of the backbone: cpu, cuda, cuda:1, mps, or auto (cuda where there is one, else cpu)",
        recorded=False,
    )
    device_map: Literal["none", "auto"] = setting(
        "none",
        "auto spreads a backbone that is larger than the device over all GPUs, the CPU's memory and the disk; none loads it on "
        "one device",
        recorded=False,
    )
    precision: Literal["auto", "float32", "bfloat16"] = setting(
        "auto",
        "precision of losses and predictions; bfloat16 means autocast, experts and optimizer stay float32; auto is bfloat16 "
        "on cuda and float32 elsewhere",
    )
    dtype: Literal["float32", "bfloat16", "float16"] = setting("float32", "data type of the backbone's weights")
    attention: Literal["auto", "sdpa", "eager"] = setting(
        "auto", "attention implementation; auto is the model's own choice"
    )
    quantize: Literal["none", "4bit", "8bit"] = setting(
        "none", "quantization of the backbone's linear modules by bitsandbytes"
    )
    data_root: str | None = setting(
        None, "folder at which relative data paths of task cards start, by default the card's own folder"
    )
    vision_cache: int = setting(
        1024,
        "megabytes on disk, while a command runs, for vision features that no active expert changes; 0 disables the cache",
        recorded=False,
        ge=0,
    )
    workers: int = setting(
        -1,
        "processes that prepare samples while the model computes; -1 chooses by cores, device and number of samples",
        expected="0 or more, or -1 to choose by the machine",
        recorded=False,
        ge=-1,
    )
    sample_cache: int = setting(
        512,
        "megabytes in memory, while a command runs, for prepared samples that are used again; 0 disables the cache",
        recorded=False,
        ge=0,
    )
    cuda_graphs: bool = setting(
        True,
        "on a GPU, capture training steps and decoding as CUDA graphs, which launch all kernels of a step at once",
        recorded=False,
    )
    shared: str | None = setting(
        None, "folder of profiles, features and routers that several runs share, by default the run directory"
    )
    method: Mapping[str, Mapping[str, float]] = setting(
        {}, "options of methods: `[method.ewc-lora]` with `weight = 1e3`", expected="tables of numbers by method names"
    )
    profile: ProfileSettings = ProfileSettings()
    allocate: AllocateSettings = AllocateSettings()
    router: RouterSettings = RouterSettings()
    train: TrainSettings = TrainSettings()
    evaluate: EvaluateSettings = setting(EvaluateSettings(), "settings of one evaluation", recorded=False)
    serve: ServeSettings = setting(ServeSettings(), "settings of the service", recorded=False)

    @model_validator(mode="before")
    @classmethod
    def _unseen_by_default(cls, table: Any) -> Any:
        """A task of the stream is not unseen by default."""
        if not isinstance(table, Mapping) or "unseen" in table or not isinstance(table.get("tasks"), list | tuple):
            return table
        return {**table, "unseen": tuple(name for name in DEFAULT_UNSEEN if name not in table["tasks"])}

    @field_validator("tasks")
    @classmethod
    def _each_once(cls, tasks: tuple[str, ...]) -> tuple[str, ...]:
        if not tasks or len(set(tasks)) < len(tasks):
            raise ValueError("name each task once, and at least one")
        return tasks

    @field_validator("method")
    @classmethod
    def _known_methods(cls, tables: Mapping[str, Any]) -> Mapping[str, Any]:
        known = catalog.names("methods")
        if unknown := sorted(set(tables) - set(known)):
            raise ValueError(f"unknown method {', '.join(unknown)} (known: {', '.join(known)})")
        return tables

    def position(self, task: str) -> int:
        """Position of a task in the stream, from 1.

        Raises:
            DmoleError: the task is not in the stream.
        """
        if task in self.removed and task not in self.tasks:
            raise DmoleError(f"task '{task}' was removed from the run", f"bring it back: dmole experts load {task}")
        if task not in self.tasks:
            raise DmoleError(
                f"task '{task}' is not in the stream ({', '.join(self.tasks)})",
                "add it to `tasks` of the configuration, which defines the order of the stream",
            )
        return self.tasks.index(task) + 1

    def earlier(self, task: str) -> tuple[str, ...]:
        """Tasks that arrive before this one."""
        return self.tasks[: self.position(task) - 1]
