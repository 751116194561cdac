"""The folder of a LoRA adapter as PEFT writes and reads it: adapter_config.json and adapter_model.safetensors.

PEFT's LoraConfig supplies the options that are written, and reads and matches those of an adapter. It takes seconds to import,
so it is imported inside the functions that need it.
"""

from __future__ import annotations

import math
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmole_cli.artifacts.files import digest_of_file, write_json
from dmole_cli.errors import DmoleError
from dmole_cli.settings.documents import read_json
from dmole_cli.settings.limits import TooMuchWork, bounded

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig

CONFIG, WEIGHTS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."
A_SUFFIX, B_SUFFIX = ".lora_A.weight", ".lora_B.weight"
LARGEST = 3.4e38  # of float32
PATTERN_SECONDS = 5.0  # of processor time for matching all modules
HINT = "pass a folder written by PEFT's save_pretrained, with adapter_config.json and adapter_model.safetensors"

# Options of LoraConfig that an export states.
WRITTEN = (
    "peft_type", "task_type", "base_model_name_or_path", "bias", "fan_in_fan_out", "inference_mode", "init_lora_weights",
    "lora_dropout", "modules_to_save", "r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern",
)  # fmt: skip
# Options that are read here, or have no effect once the weights are trained. Any other option that is set (DoRA, retrained
# modules, options of later versions) may change what the adapter computes, and is rejected.
READ = {"peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"}
HARMLESS = {
    "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode", "lora_dropout",
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "fan_in_fan_out", "megatron_core",
    "qalora_group_size", "runtime_config", "eva_config", "ensure_weight_tying",
}  # fmt: skip
# Initialisations that leave the backbone's weights unchanged; an adapter with another one needs the weights that it changed.
INITIALISATIONS = (None, True, False, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter read from disk.

    Attributes:
        modules: module path, without PEFT's prefix -> (A [rank, in], B [out, rank]), float32 and finite.
        ranks: module path -> the rank by the configuration, 1 or more.
        scales: module path -> the factor of B A x, finite.
        digests: file -> sha256.
        tensors: all tensors by their names in the file, float32.
        unpaired: names of tensors that belong to no pair of A and B by their names.
    """

    modules: dict[str, tuple[torch.Tensor, torch.Tensor]]
    ranks: dict[str, int]
    scales: dict[str, float]
    digests: dict[str, str]
    tensors: dict[str, torch.Tensor]
    unpaired: tuple[str, ...] = ()


def placement_config(ranks: Mapping[str, int], *, scale: float) -> dict[str, Any]:
    """The arguments of PEFT's LoraConfig that create an adapter of these ranks at these modules; needs no import of PEFT.

    Args:
        ranks: full module path -> rank; at least one.
        scale: alpha / rank, the same at all of them.
    """
    [(rank, _)] = Counter(ranks.values()).most_common(1)
    others = {name: other for name, other in ranks.items() if other != rank}
    return {
        "r": rank,
        "lora_alpha": _number(scale * rank),
        "target_modules": list(ranks),
        "rank_pattern": others,
        "alpha_pattern": {name: _number(scale * other) for name, other in others.items()},
    }


def _number(value: float) -> float | int:
    return int(value) if value == int(value) else value


def write_adapter(
    folder: Path,
    modules: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
    *,
    scale: float,
    backbone: str,
    names: Mapping[str, str] | None = None,
) -> None:
    """Write both files into an existing folder.

    Args:
        folder: of the adapter.
        modules: full module path -> (A [rank, in], B [out, rank]).
        scale: alpha / rank.
        backbone: name or path of the base model.
        names: module path -> the name that its tensors have in the file, where another one than the path.
    """
    from peft import LoraConfig
    from safetensors.torch import save

    placement = placement_config({name: len(a) for name, (a, _) in modules.items()}, scale=scale)
    config = LoraConfig(base_model_name_or_path=backbone, inference_mode=True, **placement).to_dict()
    # save_pretrained would add PEFT's version and write target_modules in the order of a set, which differs between
    # processes: the same expert would not give the same bytes.
    config["target_modules"] = placement["target_modules"]
    stored = {name: PREFIX + (names or {}).get(name, name) for name in modules}
    tensors = {f"{stored[name]}{A_SUFFIX}": a.contiguous() for name, (a, _) in modules.items()}
    tensors |= {f"{stored[name]}{B_SUFFIX}": b.contiguous() for name, (_, b) in modules.items()}
    (folder / WEIGHTS).write_bytes(save(dict(sorted(tensors.items())), {"format": "pt"}))
    write_json(folder / CONFIG, {key: config[key] for key in WRITTEN})


def read_adapter(folder: Path) -> Adapter:
    """Read a LoRA adapter.

    Raises:
        DmoleError: the folder has no adapter, its weights are pickled or not finite, or it is more than plain LoRA on linear
            modules.
    """
    try:
        return _read_adapter(folder)
    except OSError as error:
        raise DmoleError(f"{error.filename or folder} cannot be read: {error.strerror or error}", HINT) from error


def _read_adapter(folder: Path) -> Adapter:
    options = _read_options(folder)
    weights = folder / WEIGHTS
    if not weights.is_file():
        if (folder / PICKLED).is_file():
            raise DmoleError(
                f"{folder / PICKLED} is a pickle, which can run any code when it is loaded",
                "if you trust it, load it with PEFT and save it again: save_pretrained writes safetensors",
            )
        raise DmoleError(f"{weights} does not exist", HINT)
    problems = _problems(options)
    tensors = _read_tensors(weights)
    if not tensors:
        problems.append("it has no tensors")
    problems += _not_finite(tensors)
    if problems:
        raise rejected(folder, problems)
    config = _parsed(folder)
    modules, unpaired = _pairs(tensors)
    try:
        with bounded(seconds=PATTERN_SECONDS):
            ranks = {name: int(_of_pattern(config.rank_pattern, name, config.r)) for name in modules}
            alphas = {name: float(_of_pattern(config.alpha_pattern, name, config.lora_alpha)) for name in modules}
    except TooMuchWork as error:
        message = f"matching the rank_pattern and alpha_pattern of {CONFIG} does not end ({error})"
        raise rejected(folder, [message]) from error
    scales = {
        name: alphas[name] / (math.sqrt(rank) if config.use_rslora else rank)  # rsLoRA, arXiv 2312.03732
        for name, rank in ranks.items()
    }
    digests = {name: digest_of_file(folder / name) for name in (CONFIG, WEIGHTS)}
    return Adapter(modules, ranks, scales, digests, tensors, tuple(unpaired))


def require_ranks(adapter: Adapter, folder: Path) -> None:
    """Refuse matrices of another rank than the configuration gives them.

    Raises:
        DmoleError: names the modules.
    """
    ranks = adapter.ranks
    wrong = [name for name, (a, b) in adapter.modules.items() if not a.shape[0] == b.shape[1] == ranks[name]]
    if wrong:
        raise rejected(folder, [f"the matrices of {n} do not have the rank {ranks[n]} of {CONFIG}" for n in wrong])


def _read_options(folder: Path) -> dict[str, Any]:
    """The options as they are in the file; PEFT's own reader ignores options that it does not know, and fills in defaults."""
    path = folder / CONFIG
    if not path.is_file():
        named = sorted(found.parent.name for found in folder.glob(f"*/{CONFIG}"))
        raise DmoleError(
            f"{path} does not exist", f"{folder} has the adapters {', '.join(named)}: pass one" if named else HINT
        )
    try:
        options = read_json(path)
    except ValueError as error:  # also if it is not UTF-8
        raise DmoleError(f"{path} is not valid JSON: {error}", HINT) from error
    if not isinstance(options, dict) or options.get("peft_type") != "LORA":
        kind = options.get("peft_type") if isinstance(options, dict) else None
        raise DmoleError(f"{path} is not the configuration of a LoRA adapter (peft_type {kind})", HINT)
    missing = [key for key in ("r", "lora_alpha") if options.get(key) is None]
    if missing:
        raise DmoleError(f"{path} has no {' and no '.join(missing)}", HINT)
    if wrong := _invalid_numbers(options):
        raise DmoleError(f"{path} has invalid values: {'; '.join(wrong[:3])}", HINT)
    return options


def _invalid_numbers(options: Mapping[str, Any]) -> list[str]:
    """Ranks that are no whole numbers of 1 or more, and alphas that are no finite numbers, in words."""
    found = []
    for name, key, valid, words in (
        ("r", "rank_pattern", _is_rank, "a whole number of 1 or more"),
        ("lora_alpha", "alpha_pattern", _is_finite, "a finite number"),
    ):
        pattern = options.get(key) or {}
        if not isinstance(pattern, Mapping):
            found.append(f"{key} is {str(pattern)[:80]!r}, expected a table")
            continue
        values = {name: options[name]} | {f"{key} {pattern_key!r}": value for pattern_key, value in pattern.items()}
        found += [
            f"{place} is {str(value)[:80]}, expected {words}" for place, value in values.items() if not valid(value)
        ]
    return found


def _is_rank(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value < 2**31


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST


def _parsed(folder: Path) -> LoraConfig:
    """The configuration as PEFT reads it.

    Raises:
        DmoleError: PEFT rejects it, or a pattern is not a regular expression.
    """
    from peft import PeftConfig

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of options without an effect
            config: Any = PeftConfig.from_pretrained(str(folder))
    except (TypeError, ValueError, AttributeError, KeyError, ImportError) as error:
        raise DmoleError(f"PEFT cannot read {folder / CONFIG}: {error}", HINT) from error
    for key in ("rank_pattern", "alpha_pattern"):
        for pattern in getattr(config, key) or {}:
            try:
                re.compile(f"({pattern})")
            except (re.error, RecursionError, OverflowError) as error:
                message = f"{folder / CONFIG}: '{pattern}' in {key} is not a regular expression: {error}"
                raise DmoleError(message, HINT) from error
    return config


def _problems(options: Mapping[str, Any]) -> list[str]:
    """What makes the adapter more than plain LoRA, in words."""
    found = []
    if options.get("bias", "none") != "none":
        found.append(f"it trains biases (bias {options['bias']})")
    initialisation = options.get("init_lora_weights")
    if initialisation not in INITIALISATIONS:
        found.append(f"it changes the backbone's own weights (init_lora_weights {initialisation})")
    other = sorted(options.keys() - READ - HARMLESS - {"bias", "init_lora_weights"})
    return found + [f"it uses {key} {options[key]}" for key in other if options[key]]


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a file, sorted by name; floating-point types as float32, others unchanged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (SafetensorError, ValueError, KeyError) as error:
        raise DmoleError(f"{path} cannot be read as safetensors: {error}", "copy or save the adapter again") from error
    return {key: tensors[key].float() if tensors[key].is_floating_point() else tensors[key] for key in sorted(tensors)}


def _not_finite(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """Tensors that an expert cannot hold, in words."""
    other = [
        f"{key} has the type {str(t.dtype).removeprefix('torch.')}"
        for key, t in tensors.items()
        if not t.is_floating_point()
    ]
    wrong = [key for key, t in tensors.items() if t.is_floating_point() and not bool(t.isfinite().all())]
    return other + [f"{key} has values that are not finite in float32" for key in wrong]


def _pairs(tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, tuple[torch.Tensor, torch.Tensor]], list[str]]:
    """Module path -> (A, B), and the names of tensors that do not belong to such a pair of matrices."""
    names = [key.removesuffix(A_SUFFIX) for key in tensors if key.endswith(A_SUFFIX)]
    pairs = {n: (tensors[n + A_SUFFIX], tensors[n + B_SUFFIX]) for n in names if n + B_SUFFIX in tensors}
    pairs = {n: (a, b) for n, (a, b) in pairs.items() if a.dim() == b.dim() == 2}
    read = {n + suffix for n in pairs for suffix in (A_SUFFIX, B_SUFFIX)}
    return {n.removeprefix(PREFIX): pair for n, pair in pairs.items()}, sorted(tensors.keys() - read)


def _of_pattern(patterns: Mapping[str, float] | None, name: str, default: float) -> float:
    """The value for a module: that of the first pattern that matches the end of its path, as PEFT matches it."""
    from peft.utils.other import get_pattern_key

    return (patterns or {}).get(get_pattern_key(list(patterns or ()), name), default)


def rejected(folder: Path, problems: Sequence[str]) -> DmoleError:
    """The error for an adapter that cannot become an expert."""
    more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
    return DmoleError(
        f"{folder} cannot be imported: {'; '.join(problems[:5])}{more}",
        "an expert is plain LoRA on linear modules; train the adapter again without the other options",
    )
