"""What a backbone's folder must hold before it is loaded, and what must be true of the loaded weights.

Only safetensors are read: a pickle can run any code. transformers initialises weights that a checkpoint lacks with random numbers
and goes on; here that is an error.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmole_cli.backbones.files import local_folder, not_a_backbone
from dmole_cli.errors import DmoleError
from dmole_cli.settings.documents import read_json

if TYPE_CHECKING:
    from torch import nn

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
# Buffers that older versions of transformers stored, and that are computed today.
COMPUTED = re.compile(r"(position_ids|inv_freq|num_batches_tracked)$")


def require_safe_weights(name: str) -> None:
    """Refuse a local folder whose weights are not safetensors, or that is a PEFT adapter.

    Raises:
        DmoleError: says what was found instead.
    """
    folder = local_folder(name)
    if folder is None:
        return
    # transformers would load the adapter's base model instead, whatever else the folder holds.
    if (folder / "adapter_config.json").exists():
        raise DmoleError(
            f"backbone '{name}' is a PEFT adapter (it holds adapter_config.json)",
            "pass the folder of its base model as --backbone, and import the adapter: dmole import --task TASK FOLDER",
        )
    if (folder / WEIGHTS).is_file():
        return
    if (folder / INDEX).is_file():
        _require_safe_index(name, folder)
        return
    pickled = sorted(file.name for pattern in PICKLED for file in folder.glob(pattern))
    if pickled:
        raise DmoleError(
            f"the weights of backbone '{name}' are pickled ({', '.join(pickled[:3])}), which can run any code when loaded",
            "dmole reads safetensors only; if you trust the file, load it with transformers and save it again: "
            "save_pretrained writes safetensors",
        )
    raise not_a_backbone(name, f"it holds neither {WEIGHTS} nor {INDEX}")


def _require_safe_index(name: str, folder: Path) -> None:
    try:
        index = read_json(folder / INDEX)
    except (OSError, ValueError) as error:
        raise not_a_backbone(name, f"{INDEX} cannot be read: {error}") from error
    shards = index.get("weight_map") if isinstance(index, Mapping) else None
    if not isinstance(shards, Mapping) or not shards:
        raise not_a_backbone(name, f"{INDEX} has no weight_map")
    for shard in sorted({str(shard) for shard in shards.values()}):
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise not_a_backbone(
                name, f"{INDEX} names {shard!r}; expected the name of a safetensors file of this folder"
            )
        if not (folder / shard).is_file():
            raise not_a_backbone(name, f"{shard} is missing, which {INDEX} names")


def require_complete(name: str, found: Mapping[str, Any]) -> None:
    """Refuse weights that differ from those of the model.

    Args:
        name: of the backbone.
        found: the loading information of transformers, in which tied weights and keys that a model ignores are left out.

    Raises:
        DmoleError: names the missing and the unexpected tensors.
    """
    problems = []
    for words, keys in (("lacks", found["missing_keys"]), ("has unexpected", found["unexpected_keys"])):
        names = sorted(key for key in map(str, keys) if not COMPUTED.search(key))
        if names:
            problems.append(f"{words} {len(names)} tensor(s): {_listed(names)}")
    if mismatched := sorted(str(entry[0]) for entry in found.get("mismatched_keys", ())):
        problems.append(f"has tensors of another shape: {_listed(mismatched)}")
    if problems:
        raise DmoleError(
            f"the weights of backbone '{name}' do not fit its config.json: the file {'; it '.join(problems)}",
            "copy or download the folder again, with a config.json and weights that were saved together",
        )


def require_finite(name: str, model: nn.Module) -> None:
    """Refuse weights with a NaN or an infinity; offloaded ones are not read.

    Raises:
        DmoleError: names the tensors.
    """
    from dmole_cli.backbones.device import is_offloaded

    offloaded = {id(p) for module in model.modules() if is_offloaded(module) for p in module.parameters(recurse=False)}
    loaded = ((key, p) for key, p in model.named_parameters() if p.is_floating_point() and id(p) not in offloaded)
    wrong = [key for key, p in loaded if not bool(p.isfinite().all())]
    if wrong:
        raise DmoleError(
            f"the weights of backbone '{name}' hold values that are not finite: {_listed(wrong)}",
            "copy or download the folder again; weights that were converted to float16 may have overflowed",
        )


def _listed(names: Collection[str]) -> str:
    shown = list(names)[:5]
    return ", ".join(shown) + (f" and {len(names) - len(shown)} more" if len(names) > len(shown) else "")
