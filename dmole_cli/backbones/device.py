"""Resolution of `--device` and `--precision` on this machine."""

from __future__ import annotations

import torch

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
