"""Shared by the tiny models: what a model folder is made of, written as the files that the hub's folders hold.

A folder has a `config.json` with random weights in the model's own class, a byte-level tokenizer, a chat template, and a
`processor_config.json`. Processors are written as JSON and not by `save_pretrained`, so that the folder also exists where the
family's image or video processor cannot be made because torchvision is missing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from dmole_cli.backbones.families import _tiny

SQUARE = {"height": _tiny.SIDE, "width": _tiny.SIDE}
HALF = {"image_mean": _tiny.MEAN, "image_std": _tiny.STD}
# Roles between markers, without a system prompt. IMAGE stands for the family's image tokens.
TURNS = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}IMAGE"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Vicuna's style: roles as words.
WORDS = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }} {% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
CHAT_MARKS = _tiny.CHAT_MARKS


def chat(image: str, template: str = TURNS) -> str:
    """A chat template with the family's image tokens."""
    return template.replace("IMAGE", image)


def ids(tokens: Any, **names: str) -> dict[str, int]:
    """Configuration keys -> token ids."""
    return {key: tokens.convert_tokens_to_ids(token) for key, token in names.items()}


def siglip(patch: int = _tiny.PATCH) -> dict[str, Any]:
    """Arguments of a SigLIP vision encoder's configuration."""
    return {"model_type": "siglip_vision_model", **_tiny.vision_sizes(patch=patch), "vision_use_head": False}


def _strengthen(model: Any) -> None:
    """Initialise matrices again that are too small, or not set at all, for a result to depend on the image."""
    for parameter in model.parameters():
        if parameter.dim() > 1 and not 0.05 < parameter.std() < 2:
            torch.nn.init.normal_(parameter, std=0.1)


def write(
    folder: Path,
    config: Mapping[str, Any],
    tokens: Any,
    processor: Mapping[str, Any],
    *,
    template: str | None = None,
    prepare: Callable[[Any], None] | None = None,
) -> Path:
    """Write a model folder.

    Args:
        folder: destination.
        config: `model_type` and arguments of its configuration.
        tokens: the tokenizer.
        processor: contents of `processor_config.json`; `processor_class` among them.
        template: the chat template, for families that have one.
        prepare: changes the model before it is written, such as gates that are initialised to zero.

    Returns:
        The folder.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    settings = AutoConfig.for_model(**config)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = AutoModelForImageTextToText.from_config(settings)
            _strengthen(model)
            if prepare is not None:
                prepare(model)
        model.save_pretrained(folder)
    except ImportError:  # without timm: the configuration, and a file that is there in place of the weights
        settings.architectures = [MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[settings.model_type]]
        settings.save_pretrained(folder)
        save_file({"none": torch.zeros(1)}, folder / "model.safetensors", {"format": "pt"})
    tokens.save_pretrained(folder)
    (folder / "processor_config.json").write_text(json.dumps(processor, indent=2), encoding="utf-8")
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder
