"""From what a user calls a backbone to the loaded model; the fingerprint of its files needs no library."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmole_cli.artifacts.files import digest_of_file
from dmole_cli.backbones import embedded
from dmole_cli.errors import DmoleError

if TYPE_CHECKING:
    import torch

    from dmole_cli.backbones.adapter import Backbone

WEIGHT_FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")


def resolve(name: str) -> str:
    """Turn `embedded` into the folder of the shipped model; leave everything else as it is."""
    return str(embedded.FOLDER) if name == "embedded" else name


def fingerprint_of(name: str) -> str:
    """sha256 over names and digests of the files that make a backbone.

    Raises:
        DmoleError: a folder without a model in it.
    """
    folder = Path(resolve(name))
    if not folder.is_dir():
        # A hub id is `name` or `owner/name`; everything else was meant as a folder.
        if folder.exists() or folder.is_absolute() or name.startswith(".") or name.count("/") > 1:
            raise _not_a_model(name, f"{folder} is not a folder")
        return hashlib.sha256(f"hub:{name}".encode()).hexdigest()
    files = sorted({f for pattern in WEIGHT_FILES for f in folder.glob(pattern)})
    if not (folder / "config.json").exists() or not any(f.suffix == ".safetensors" for f in files):
        raise _not_a_model(name, "it holds no config.json with safetensors weights")
    return hashlib.sha256(json.dumps([[f.name, digest_of_file(f)] for f in files]).encode()).hexdigest()


def load_backbone(name: str, *, device: torch.device | str = "cpu", precision: str = "float32") -> Backbone:
    """Load a backbone in float32 from a folder, a hub id, or `embedded`.

    Args:
        name: as the user typed it.
        device: where it computes.
        precision: of losses and answers, `float32` or `bfloat16` (see `Backbone`).

    Raises:
        DmoleError: there is no such model, or it is no image-text-to-text model.
    """
    import torch
    from transformers import AutoModelForImageTextToText
    from transformers.utils import logging

    from dmole_cli.backbones.adapter import Backbone
    from dmole_cli.backbones.processors import load_processor

    # Numbers too small for a normal float are many times slower on a CPU and say nothing to a model.
    torch.set_flush_denormal(True)
    # Unasked, CUDA rounds the inputs of float32 convolutions to ten bits; patches would come out otherwise than said.
    torch.backends.cudnn.allow_tf32 = False
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    fingerprint = fingerprint_of(name)
    path = resolve(name)
    try:
        processor = load_processor(path)
        model: Any = AutoModelForImageTextToText.from_pretrained(path, trust_remote_code=False, dtype=torch.float32)
    # Whatever a library meets in files that are no model (cut weights, foreign keys, no such repository, no network).
    except Exception as error:
        why = str(error).strip().splitlines() or [type(error).__name__]
        raise _not_a_model(name, why[0]) from error
    if getattr(processor, "tokenizer", None) is None:
        raise _not_a_model(name, "its processor has no tokenizer")
    return Backbone(name, fingerprint, model.to(device), processor, precision=precision)


def _not_a_model(name: str, why: str) -> DmoleError:
    return DmoleError(
        f"backbone '{name}' cannot be loaded as an image-text-to-text model: {why}",
        "pass --backbone a folder written by save_pretrained (with its processor), a hub id, or 'embedded'",
    )
