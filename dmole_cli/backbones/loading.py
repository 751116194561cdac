"""From what a user calls a backbone to the loaded model; the fingerprint of its files needs no library."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmole_cli.artifacts.files import digest_of_file
from dmole_cli.backbones import embedded
from dmole_cli.errors import DmoleError

if TYPE_CHECKING:
    import torch

    from dmole_cli.backbones.backbone import Backbone
    from dmole_cli.backbones.inputs import Inputs

WEIGHT_FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")


def resolve(name: str) -> str:
    """Turn `embedded` into the folder of the shipped model; leave everything else as it is."""
    return str(embedded.FOLDER) if name == "embedded" else name


def fingerprint_of(name: str) -> str:
    """sha256 over names and digests of the files that make a backbone.

    Raises:
        DmoleError: a folder without a model in it.
    """
    folder = _folder_of(name)
    if folder is None:
        return hashlib.sha256(f"hub:{name}".encode()).hexdigest()
    files = sorted({f for pattern in WEIGHT_FILES for f in folder.glob(pattern)})
    if not (folder / "config.json").exists() or not any(f.suffix == ".safetensors" for f in files):
        raise _not_a_model(name, "it holds no config.json with safetensors weights")
    return hashlib.sha256(json.dumps([[f.name, digest_of_file(f)] for f in files]).encode()).hexdigest()


def _folder_of(name: str) -> Path | None:
    """The folder of a backbone, None of a hub id."""
    folder = Path(resolve(name))
    if folder.is_dir():
        return folder
    # A hub id is `name` or `owner/name`; everything else was meant as a folder.
    if folder.exists() or folder.is_absolute() or name.startswith(".") or name.count("/") > 1:
        raise _not_a_model(name, f"{folder} is not a folder")
    return None


@dataclass(frozen=True)
class Loading:
    """How a backbone's weights are loaded. Each of it changes what the backbone computes, so it belongs to its fingerprint.

    Attributes:
        dtype: type of the weights, `float32`, `bfloat16` or `float16`; what they compute is of this type, too.
        attention: `sdpa` or `eager`, or `auto` for the model's own choice.
        quantize: `4bit` (NF4) or `8bit` for the linear modules, by bitsandbytes; `none`.
    """

    dtype: str = "float32"
    attention: str = "auto"
    quantize: str = "none"

    def __str__(self) -> str:
        """What differs from the defaults, in words; empty where nothing does."""
        said = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        return "".join(f" {name}={value}" for name, value in said.items())


PLAIN = Loading()


def load_backbone(
    name: str, *, device: torch.device | str = "cpu", precision: str = "float32", loading: Loading = PLAIN
) -> Backbone:
    """Load a backbone from a folder, a hub id, or `embedded`.

    Args:
        name: as the user typed it.
        device: where it computes.
        precision: of losses and answers, `float32` or `bfloat16` (see `Backbone`).
        loading: type and form of the weights.

    Raises:
        DmoleError: there is no such model, it is no image-text-to-text model, or a package that it needs is missing.
    """
    import torch
    from transformers.utils import logging

    # Numbers too small for a normal float are many times slower on a CPU and say nothing to a model.
    torch.set_flush_denormal(True)
    # Unasked, CUDA rounds the inputs of float32 convolutions to ten bits; patches would come out otherwise than said.
    torch.backends.cudnn.allow_tf32 = False
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    fingerprint = fingerprint_of(name) + str(loading)
    path = resolve(name)
    _require_quantizer(loading)
    try:
        from transformers import AutoModelForImageTextToText

        from dmole_cli.backbones.backbone import Backbone
        from dmole_cli.backbones.processors import load_processor

        processor = load_processor(path)
        # Quantised modules are made where they stay; others come to the device at once.
        model: Any = AutoModelForImageTextToText.from_pretrained(
            path, trust_remote_code=False, **_arguments(loading, device)
        )
        model = model if loading.quantize != "none" else model.to(device)
    # Whatever a library meets in files that are no model (cut weights, foreign keys, no such repository, no network).
    except Exception as error:
        raise _refusal(name, error, loading) from error
    if getattr(processor, "tokenizer", None) is None:
        raise _not_a_model(name, "its processor has no tokenizer")
    return Backbone(name, fingerprint, model, processor, precision=precision)


def load_inputs(name: str) -> tuple[Inputs, Any]:
    """What makes a backbone's inputs, and its configuration; its weights are not read.

    Raises:
        DmoleError: as for `load_backbone`.
    """
    _folder_of(name)
    path = resolve(name)
    try:
        from transformers import AutoConfig

        from dmole_cli.backbones.families.base import family_of
        from dmole_cli.backbones.inputs import Inputs
        from dmole_cli.backbones.processors import load_processor

        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        processor = load_processor(path)
    except Exception as error:  # as in `load_backbone`
        raise _refusal(name, error, PLAIN) from error
    if getattr(processor, "tokenizer", None) is None:
        raise _not_a_model(name, "its processor has no tokenizer")
    return Inputs(processor, family_of(config.model_type)), config


def _arguments(loading: Loading, device: torch.device | str) -> dict[str, Any]:
    """What `from_pretrained` is told."""
    import torch

    arguments: dict[str, Any] = {"dtype": getattr(torch, loading.dtype)}
    if loading.attention != "auto":
        arguments["attn_implementation"] = loading.attention
    if loading.quantize != "none":
        from transformers import BitsAndBytesConfig

        four = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": arguments["dtype"]}
        # With a threshold, the columns that are left unquantised would be chosen by all rows of a batch together, and a
        # sample's answer would depend on its mates.
        eight = {"llm_int8_threshold": 0.0}
        options = {"load_in_4bit": True, **four} if loading.quantize == "4bit" else {"load_in_8bit": True, **eight}
        arguments |= {"quantization_config": BitsAndBytesConfig(**options), "device_map": {"": device}}
    return arguments


def _require_quantizer(loading: Loading) -> None:
    missing = [package for package in ("bitsandbytes", "accelerate") if find_spec(package) is None]
    if loading.quantize != "none" and missing:
        raise DmoleError(
            f"--quantize {loading.quantize} needs {' and '.join(missing)}, not installed here",
            f"pip install {' '.join(missing)}, or leave --quantize out",
        )


def _refusal(name: str, error: Exception, loading: Loading) -> DmoleError:
    """What a failure to load means to a user."""
    chain, cause = [], error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__  # type: ignore[assignment]
    said = "\n".join(str(link) for link in chain)
    if "torchvision::" in said:
        import torch

        return DmoleError(
            f"the torchvision installed here was not built for torch {torch.__version__}: no model can be loaded",
            "pip uninstall torchvision (pictures do not need it), or install the version that belongs to this torch",
        )
    if any(isinstance(link, ImportError) for link in chain) and "torchvision" in said.lower():
        return DmoleError(
            f"backbone '{name}' needs torchvision to prepare its pictures",
            "pip install torchvision, in the version that belongs to your torch",
        )
    why = str(error).strip().splitlines() or [type(error).__name__]
    if loading.quantize != "none":
        return DmoleError(
            f"backbone '{name}' cannot be loaded in {loading.quantize}: {why[0]}",
            "bitsandbytes quantises on CUDA and on CPUs that it supports; leave --quantize out to load the plain weights",
        )
    return _not_a_model(name, why[0])


def _not_a_model(name: str, why: str) -> DmoleError:
    return DmoleError(
        f"backbone '{name}' cannot be loaded as an image-text-to-text model: {why}",
        "pass --backbone a folder written by save_pretrained (with its processor), a hub id, or 'embedded'",
    )
