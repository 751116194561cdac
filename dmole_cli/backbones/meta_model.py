"""A backbone built from its configuration on torch's meta device, without weights; `sites` and `plan` use it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dmole_cli.backbones.files import local_folder, resolve
from dmole_cli.errors import DmoleError, first_line

HINT = "pass --backbone a folder with the config.json of an image-text-to-text model, a hub id, or 'embedded'"


def meta_model(name: str, *, attention: str = "auto") -> Any:
    """Build a backbone on the meta device: all modules and shapes, no values and no memory.

    Args:
        name: `embedded`, a folder with at least config.json, or a hub id (only its configuration is downloaded).
        attention: attention implementation, `sdpa` or `eager`; `auto` for the model's default.

    Raises:
        DmoleError: there is no configuration, or it does not describe an image-text-to-text model.
    """
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText
    from transformers.utils import logging

    from dmole_cli.backbones.families.base import check_type

    logging.set_verbosity_error()
    local_folder(name)
    path = resolve(name)
    if Path(path).is_dir() and not (Path(path) / "config.json").is_file():
        raise DmoleError(f"backbone '{name}' holds no config.json", HINT)
    check_type(path)
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        with torch.device("meta"):
            chosen = {} if attention == "auto" else {"attn_implementation": attention}
            return AutoModelForImageTextToText.from_config(config, trust_remote_code=False, **chosen).eval()
    # Libraries raise anything on broken JSON, an unsupported class, a missing repository or no network.
    except Exception as error:
        raise DmoleError(
            f"backbone '{name}' cannot be built from its configuration: {first_line(error)}", HINT
        ) from error
