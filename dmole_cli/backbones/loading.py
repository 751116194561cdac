"""Loading of backbones: type and quantisation of the weights, and what failures to load mean."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, fields
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from dmole_cli.backbones.files import fingerprint_of, local_folder, not_a_backbone, resolve
from dmole_cli.backbones.weights import require_complete, require_finite, require_safe_weights
from dmole_cli.errors import DmoleError, first_line
from dmole_cli.settings.limits import TooMuchWork, bounded

if TYPE_CHECKING:
    import torch

    from dmole_cli.backbones.backbone import Backbone
    from dmole_cli.backbones.inputs import Inputs


# Limits of rendering the chat template for a short question.
TEMPLATE_SECONDS, TEMPLATE_MEMORY, LONGEST_PROMPT = 10.0, 1 << 30, 1_000_000


@dataclass(frozen=True)
class Loading:
    """How a backbone's weights are loaded; it changes what the backbone computes and is part of its fingerprint.

    Attributes:
        dtype: type of the weights and of what they compute: `float32`, `bfloat16` or `float16`.
        attention: attention implementation, `sdpa` or `eager`; `auto` for the model's default.
        quantize: quantisation of the linear modules by bitsandbytes: `4bit` (NF4), `8bit` or `none`.
    """

    dtype: str = "float32"
    attention: str = "auto"
    quantize: str = "none"

    def __str__(self) -> str:
        """The settings that differ from the defaults, as ` name=value`; empty if none does."""
        changed = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        return "".join(f" {name}={value}" for name, value in changed.items())


PLAIN = Loading()


def load_backbone(
    name: str,
    *,
    device: torch.device | str = "cpu",
    precision: str = "float32",
    loading: Loading = PLAIN,
    device_map: str = "none",
) -> Backbone:
    """Load a backbone from a folder, a hub id, or `embedded`.

    Args:
        name: the backbone as the user named it.
        device: device of the weights.
        precision: precision of losses and answers, `float32` or `bfloat16` (see `Backbone`).
        loading: type and quantisation of the weights.
        device_map: `auto` spreads the weights over all GPUs, the CPU's memory and the disk, where they do not fit on the device.

    Raises:
        DmoleError: there is no such model, it is not an image-text-to-text model, its weights are incomplete, not finite or
            not in safetensors, or a required package is missing.
    """
    import torch
    from transformers.utils import logging

    from dmole_cli.backbones.families.base import check_type

    # Denormal numbers are many times slower on a CPU and do not matter to a model.
    torch.set_flush_denormal(True)
    # By default, CUDA rounds the inputs of float32 convolutions to TF32 (ten bits), which changes patch embeddings.
    torch.backends.cudnn.allow_tf32 = False
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    fingerprint = fingerprint_of(name) + str(loading)
    path = resolve(name)
    require_safe_weights(name)
    _require_quantizer(loading)
    check_type(path)
    try:
        from dmole_cli.backbones.backbone import Backbone
        from dmole_cli.backbones.processors import load_processor

        processor = load_processor(path)
        model, found = _load_model(path, loading, device, device_map)
    # Libraries raise anything on incomplete weights, unknown keys, a missing repository or no network.
    except Exception as error:
        raise _loading_error(name, error, loading) from error
    if getattr(processor, "tokenizer", None) is None:
        raise not_a_backbone(name, "its processor has no tokenizer")
    require_complete(name, found)
    require_finite(name, model)
    backbone = Backbone(name, fingerprint, model, processor, precision=precision)
    _require_bounded_template(name, backbone.inputs)
    return backbone


def _load_model(path: str, loading: Loading, device: torch.device | str, device_map: str) -> tuple[Any, Any]:
    """The model with its weights, and the loading information of transformers."""
    from transformers import AutoModelForImageTextToText

    spreading, folder = _spreading(device_map, device)
    loaded: Any = AutoModelForImageTextToText.from_pretrained(
        path,
        trust_remote_code=False,
        use_safetensors=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # `require_complete` names them; the error of transformers does not
        **_arguments(loading, device),
        **spreading,
    )
    model, found = loaded
    if folder is not None:
        model.offload_folder = folder  # is deleted together with the model
    # Quantised modules, and those of a model that is spread over devices, are created on their device.
    placed = loading.quantize != "none" or device_map != "none"
    return model if placed else model.to(device), found


def load_inputs(name: str) -> tuple[Inputs, Any]:
    """A backbone's `Inputs` and its configuration, without its weights.

    Raises:
        DmoleError: as for `load_backbone`.
    """
    from dmole_cli.backbones.families.base import check_type, family_class

    local_folder(name)
    path = resolve(name)
    check_type(path)
    try:
        from transformers import AutoConfig

        from dmole_cli.backbones.inputs import Inputs
        from dmole_cli.backbones.processors import load_processor

        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        processor = load_processor(path)
    except Exception as error:  # as in `load_backbone`
        raise _loading_error(name, error, PLAIN) from error
    if getattr(processor, "tokenizer", None) is None:
        raise not_a_backbone(name, "its processor has no tokenizer")
    inputs = Inputs(processor, family_class(config.model_type)(processor))
    _require_bounded_template(name, inputs)
    return inputs, config


def _require_bounded_template(name: str, inputs: Inputs) -> None:
    """Refuse a chat template that loops, or grows, without an end; rendering is tried with up to three images.

    Raises:
        DmoleError: rendering did not end within a few seconds, or takes too much memory.
    """
    for images in range(4):
        try:
            with bounded(seconds=TEMPLATE_SECONDS, memory=TEMPLATE_MEMORY):
                length = len(inputs.family.prompt("Is this it?", images=images))
            if length > LONGEST_PROMPT:
                raise TooMuchWork(f"{length} characters")
        except TooMuchWork as error:
            raise DmoleError(
                f"the chat template of backbone '{name}' does not end: {error}",
                "check chat_template.jinja (or chat_template in the processor's files) of the folder",
            ) from error
        # A template is a program: it may refuse a number of images with any error, which samples with that number raise again.
        except Exception:
            continue


def _arguments(loading: Loading, device: torch.device | str) -> dict[str, Any]:
    """Arguments of `from_pretrained`."""
    import torch

    arguments: dict[str, Any] = {"dtype": getattr(torch, loading.dtype)}
    if loading.attention != "auto":
        arguments["attn_implementation"] = loading.attention
    if loading.quantize != "none":
        from transformers import BitsAndBytesConfig

        four = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": arguments["dtype"]}
        # A threshold for outliers would leave columns unquantised that all rows of a batch choose together, so that a
        # sample's answer would depend on the other samples of its batch.
        eight = {"llm_int8_threshold": 0.0}
        options = {"load_in_4bit": True, **four} if loading.quantize == "4bit" else {"load_in_8bit": True, **eight}
        arguments |= {"quantization_config": BitsAndBytesConfig(**options), "device_map": {"": device}}
    return arguments


def _spreading(device_map: str, device: torch.device | str) -> tuple[dict[str, Any], Any]:
    """Further arguments of `from_pretrained` that spread a model over devices, and the folder of what fits nowhere else."""
    import torch

    if device_map == "none":
        return {}, None
    from dmole_cli.backbones.device import memory_limits

    folder = tempfile.TemporaryDirectory(prefix="dmole-offload-")
    limits = memory_limits(torch.device(device))
    return {"device_map": device_map, "max_memory": limits, "offload_folder": folder.name}, folder


def _require_quantizer(loading: Loading) -> None:
    missing = [package for package in ("bitsandbytes", "accelerate") if find_spec(package) is None]
    if loading.quantize != "none" and missing:
        raise DmoleError(
            f"--quantize {loading.quantize} needs {' and '.join(missing)}, not installed here",
            f"pip install {' '.join(missing)}, or leave --quantize out",
        )


def _loading_error(name: str, error: Exception, loading: Loading) -> DmoleError:
    """Translate a library's failure to load into an error with a way out."""
    chain, cause = [], error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__  # type: ignore[assignment]
    text = "\n".join(str(link) for link in chain)
    if "torchvision::" in text:
        import torch

        return DmoleError(
            f"the torchvision installed here was not built for torch {torch.__version__}: no model can be loaded",
            "pip uninstall torchvision (images do not need it), or install the version that matches this torch",
        )
    absent = any(isinstance(link, ImportError) for link in chain)
    # A missing image processor is not always an ImportError.
    if "torchvision" in text.lower() and (absent or find_spec("torchvision") is None):
        return DmoleError(
            f"backbone '{name}' needs torchvision to prepare its images",
            "pip install torchvision, in the version that matches your torch",
        )
    if absent and "timm" in text and find_spec("timm") is None:
        return DmoleError(f"backbone '{name}' needs timm for its vision encoder", "pip install timm")
    if loading.quantize != "none":
        return DmoleError(
            f"backbone '{name}' cannot be loaded in {loading.quantize}: {first_line(error)}",
            "bitsandbytes quantises on CUDA and on CPUs that it supports; leave --quantize out to load the plain weights",
        )
    return not_a_backbone(name, first_line(error))
