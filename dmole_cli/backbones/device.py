"""Resolution of `--device` and `--precision` on this machine."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from dmole_cli.errors import DmoleError
from dmole_cli.processes import world


def devices() -> list[str]:
    """Devices that torch finds, the fastest first; the CPU is always the last."""
    cuda = [f"cuda:{number}" for number in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return [*cuda, *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]


def find_device(name: str) -> torch.device:
    """The torch device of a user's setting.

    Args:
        name: `cpu`, `cuda` (torch's current one), `cuda:1`, `mps`; or `auto`: cuda if available, else the CPU. Of several
            processes of a command, each takes the GPU with its number.

    Raises:
        DmoleError: the device is not available; the available ones are listed.
    """
    found = devices()
    if world().size > 1 and name in ("auto", "cuda") and torch.cuda.is_available():
        name = f"cuda:{world().local_rank}"
    elif world().size > 1 and name not in ("auto", "cpu", "cuda"):
        raise DmoleError(
            f"--device {name} would be the device of all {world().size} processes",
            "pass --device cuda, and each process takes a GPU of its own; or cpu",
        )
    cuda = any(device.startswith("cuda") for device in found)
    if name == "auto":
        return torch.device("cuda" if cuda else "cpu")
    if name not in found and not (name == "cuda" and cuda):
        raise DmoleError(
            f"there is no device '{name}' here: torch {torch.__version__} finds {', '.join(found)}",
            "pass --device one of these, or auto; a build of torch without CUDA finds no GPU",
        )
    return torch.device(name)


def find_precision(name: str, device: torch.device, *, dtype: str = "float32") -> str:
    """The precision of losses and answers.

    Args:
        name: `float32`, `bfloat16`, or `auto`: `bfloat16` on cuda and `float32` elsewhere.
        device: device of the backbone.
        dtype: type of the weights; weights other than float32 compute in their own type.

    Raises:
        DmoleError: the precision does not match the type of half-precision weights.
    """
    if dtype != "float32":
        if name not in ("auto", dtype):
            raise DmoleError(
                f"precision {name} with weights in {dtype}: half-precision weights compute in their own type",
                "leave --precision out, or load the weights in float32 (--dtype float32)",
            )
        return dtype
    if name != "auto":
        return name
    return "bfloat16" if device.type == "cuda" else "float32"


def device_of(module: nn.Module) -> torch.device:
    """Where a module with weights computes: where its weights are; offloaded ones are moved there for each forward pass."""
    hook: Any = getattr(module, "_hf_hook", None)
    if is_offloaded(module):
        device = hook.execution_device
        return torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    return next(module.parameters()).device


def is_offloaded(module: nn.Module) -> bool:
    """Whether accelerate keeps a module's own weights in the CPU's memory or on disk while the module does not compute."""
    return bool(getattr(getattr(module, "_hf_hook", None), "offload", False))


def is_divided(model: nn.Module) -> bool:
    """Whether accelerate has spread a model over devices (`--device-map auto`)."""
    return len(getattr(model, "hf_device_map", ())) > 1


def require_own_weights(model: nn.Module, names: Iterable[str], *, work: str) -> None:
    """Refuse work that changes weights, or needs their gradients, where they are offloaded.

    Args:
        model: the backbone's model.
        names: module paths.
        work: what needs them, for the message.

    Raises:
        DmoleError: a module's weights are offloaded.
    """
    away = [name for name in names if is_offloaded(model.get_submodule(name))]
    if away:
        raise DmoleError(
            f"{work} needs the weights of {len(away)} module(s) on a device, and --device-map auto has offloaded them: {away[0]}",
            "use a machine with more GPUs or memory, or --dtype bfloat16, which halves the weights",
        )


def memory_limits(device: torch.device) -> dict[int | str, int]:
    """Device -> bytes that `--device-map auto` may fill: all GPUs and the CPU for `cuda`; one GPU and the CPU for `cuda:1`."""
    from accelerate.utils import get_max_memory

    found = get_max_memory()
    if device.type == "cuda" and device.index is None:
        return found
    return {name: size for name, size in found.items() if name in ("cpu", device.index)}


def return_memory() -> None:
    """Return freed memory to the system, which allocators otherwise keep for themselves."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, musl does not
        if trim is not None:
            trim(0)
