"""Where a backbone computes and in which type: what `--device` and `--precision` mean on this machine."""

from __future__ import annotations

import torch

from dmole_cli.errors import DmoleError


def devices() -> list[str]:
    """What torch finds here, the fastest first; the CPU is always among them."""
    cuda = [f"cuda:{number}" for number in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return [*cuda, *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]


def find_device(name: str) -> torch.device:
    """The device that a user means.

    Args:
        name: `cpu`, `cuda` (torch's current one), `cuda:1`, `mps`; or `auto`: cuda if there is one, else the CPU.

    Raises:
        DmoleError: there is no such device here; those that are there are named.
    """
    found = devices()
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
    """The precision that a user means: `bfloat16` for `auto` on cuda and `float32` elsewhere; of other weights their own type.

    Raises:
        DmoleError: the weights are of another type than the precision.
    """
    if dtype != "float32":
        if name not in ("auto", dtype):
            raise DmoleError(
                f"precision {name} with weights in {dtype}: these compute in their own type",
                "leave --precision out, or load the weights in float32 (--dtype float32)",
            )
        return dtype
    if name != "auto":
        return name
    return "bfloat16" if device.type == "cuda" else "float32"
