"""A backbone without weights, from its configuration alone: what sites and plans are found on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dmole_cli.backbones.loading import resolve
from dmole_cli.errors import DmoleError

HINT = "pass --backbone a folder with the config.json of an image-text-to-text model, a hub id, or 'embedded'"


def meta_model(name: str, *, attention: str = "auto") -> Any:
    """Build a backbone on the meta device: every module and shape, no number, no memory.

    Args:
        name: `embedded`, a folder that holds at least config.json, or a hub id (of which only the configuration is fetched).
        attention: `sdpa`, `eager`, or `auto` for the model's own choice.

    Raises:
        DmoleError: there is no configuration, or it is not that of an image-text-to-text model.
    """
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText
    from transformers.utils import logging

    logging.set_verbosity_error()
    path = resolve(name)
    if Path(path).is_dir() and not (Path(path) / "config.json").is_file():
        raise DmoleError(f"backbone '{name}' holds no config.json", HINT)
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        with torch.device("meta"):
            chosen = {} if attention == "auto" else {"attn_implementation": attention}
            return AutoModelForImageTextToText.from_config(config, trust_remote_code=False, **chosen).eval()
    # Whatever a library meets in what is no configuration (broken JSON, a foreign class, no such repository, no network).
    except Exception as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DmoleError(f"backbone '{name}' cannot be built from its configuration: {why}", HINT) from error
