"""A folder with a LoRA adapter as PEFT writes and reads it: adapter_config.json and adapter_model.safetensors.

Written without the peft library, which takes seconds to import: both files are plain, and a test loads them with it.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmole_cli.artifacts.files import digest_of_file, write_json
from dmole_cli.errors import DmoleError

if TYPE_CHECKING:
    import torch

CONFIG, WEIGHTS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."
A_SUFFIX, B_SUFFIX = ".lora_A.weight", ".lora_B.weight"
WHERE = "pass a folder that save_pretrained of PEFT has written, with adapter_config.json and adapter_model.safetensors"

# What of a PEFT configuration is read here, or changes nothing once the weights are trained. Everything else that is set
# (DoRA, retrained modules, a bias, what later versions bring) would change what the adapter computes, and is refused.
READ = {"peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"}
HARMLESS = {
    "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode", "lora_dropout",
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "fan_in_fan_out", "megatron_core",
    "qalora_group_size", "runtime_config", "eva_config", "ensure_weight_tying",
}  # fmt: skip
# Starting points that leave the backbone's weights as they are; all others are worth something with changed ones only.
STARTS = (None, True, False, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter as it stands on disk.

    Attributes:
        modules: module path, without PEFT's prefix -> (A [rank, in], B [out, rank]) in the file's precision.
        scales: module path -> what B A x is multiplied with.
        digests: file -> sha256.
    """

    modules: dict[str, tuple[torch.Tensor, torch.Tensor]]
    scales: dict[str, float]
    digests: dict[str, str]


def placement_config(ranks: Mapping[str, int], *, scale: float) -> dict[str, Any]:
    """The arguments of PEFT's LoraConfig that put an adapter of these ranks on these modules.

    Args:
        ranks: full module path -> rank; at least one.
        scale: alpha / rank, of all of them.
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
    folder: Path, modules: Mapping[str, tuple[torch.Tensor, torch.Tensor]], *, scale: float, backbone: str
) -> None:
    """Write both files into a folder that is there.

    Args:
        folder: where.
        modules: full module path -> (A [rank, in], B [out, rank]).
        scale: alpha / rank.
        backbone: what the adapter belongs to, as the user calls it.
    """
    from safetensors.torch import save

    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": backbone,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        **placement_config({name: len(a) for name, (a, _) in modules.items()}, scale=scale),
    }
    tensors = {f"{PREFIX}{name}{A_SUFFIX}": a.contiguous() for name, (a, _) in modules.items()}
    tensors |= {f"{PREFIX}{name}{B_SUFFIX}": b.contiguous() for name, (_, b) in modules.items()}
    (folder / WEIGHTS).write_bytes(save(dict(sorted(tensors.items())), {"format": "pt"}))
    write_json(folder / CONFIG, config)


def read_adapter(folder: Path) -> Adapter:
    """Read a LoRA adapter.

    Raises:
        DmoleError: the folder holds none, its weights are pickled, or it does more than plain LoRA on linear modules.
    """
    config = _read_config(folder)
    weights = folder / WEIGHTS
    if not weights.is_file():
        if (folder / PICKLED).is_file():
            raise DmoleError(
                f"{folder / PICKLED} is a pickle, which may run any program when it is read",
                "where you trust it, load it with PEFT and save it again: save_pretrained writes safetensors",
            )
        raise DmoleError(f"{weights} is not there", WHERE)
    problems = _problems(config)
    modules, unknown = _read_pairs(weights)
    problems += [f"{name} is no pair of lora_A and lora_B" for name in unknown]
    if not modules and not unknown:
        problems.append("it holds no tensors")
    if problems:
        raise _refused(folder, problems)
    ranks = {name: int(_of_pattern(config, "rank_pattern", name, config["r"])) for name in modules}
    wrong = [name for name, (a, b) in modules.items() if not a.shape[0] == b.shape[1] == ranks[name] > 0]
    if wrong:
        raise _refused(
            folder, [f"the matrices of {n} are not of the rank {ranks[n]} that {CONFIG} says" for n in wrong]
        )
    scales = {
        name: float(_of_pattern(config, "alpha_pattern", name, config["lora_alpha"]))
        / (math.sqrt(rank) if config.get("use_rslora") else rank)
        for name, rank in ranks.items()
    }
    return Adapter(modules, scales, {name: digest_of_file(folder / name) for name in (CONFIG, WEIGHTS)})


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        named = sorted(found.parent.name for found in folder.glob(f"*/{CONFIG}"))
        raise DmoleError(f"{path} is not there", f"{folder} holds {', '.join(named)}: pass one" if named else WHERE)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # also what is not UTF-8
        raise DmoleError(f"{path} is not valid JSON: {error}", WHERE) from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else None
        raise DmoleError(f"{path} is not that of a LoRA adapter (peft_type {kind})", WHERE)
    missing = [key for key in ("r", "lora_alpha") if not isinstance(config.get(key), int | float)]
    if missing:
        raise DmoleError(f"{path} gives no {' and no '.join(missing)}", WHERE)
    return config


def _problems(config: Mapping[str, Any]) -> list[str]:
    """What the adapter does beyond plain LoRA, in words."""
    found = []
    if config.get("bias", "none") != "none":
        found.append(f"it trains biases (bias {config['bias']})")
    start = config.get("init_lora_weights")
    if start not in STARTS:
        found.append(f"it changes the backbone's own weights (init_lora_weights {start})")
    known = READ | HARMLESS | {"bias", "init_lora_weights"}
    return found + [f"it uses {key} {config[key]}" for key in sorted(config.keys() - known) if config[key]]


def _read_pairs(path: Path) -> tuple[dict[str, tuple[torch.Tensor, torch.Tensor]], list[str]]:
    """Module path -> (A, B), and the names of tensors that are no such pair of matrices."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise DmoleError(f"{path} cannot be read as safetensors: {error}", "copy or save the adapter again") from error
    names = [key.removesuffix(A_SUFFIX) for key in sorted(tensors) if key.endswith(A_SUFFIX)]
    pairs = {n: (tensors[n + A_SUFFIX], tensors[n + B_SUFFIX]) for n in names if n + B_SUFFIX in tensors}
    pairs = {n: (a, b) for n, (a, b) in pairs.items() if a.dim() == b.dim() == 2}
    read = {n + suffix for n in pairs for suffix in (A_SUFFIX, B_SUFFIX)}
    return {n.removeprefix(PREFIX): pair for n, pair in pairs.items()}, sorted(tensors.keys() - read)


def _of_pattern(config: Mapping[str, Any], key: str, name: str, default: float) -> float:
    """What a pattern says of a module: the first whose expression matches the path or its end, as PEFT reads them."""
    for pattern, value in (config.get(key) or {}).items():
        try:
            if re.match(rf"(.*\.)?({pattern})$", name):
                return value
        except re.error as error:
            raise DmoleError(f"{CONFIG}: '{pattern}' in {key} is not a regular expression: {error}", WHERE) from error
    return default


def _refused(folder: Path, problems: Sequence[str]) -> DmoleError:
    more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
    return DmoleError(
        f"{folder} cannot become an expert: {'; '.join(problems[:5])}{more}",
        "an expert is plain LoRA on linear modules; train the adapter again without the rest",
    )
