"""Tiny models of model types of transformers: one function per type writes a folder with random weights.

Functions are named after the model type, with underscores for other characters. `REFUSED` and `NEEDS` say what is expected of a
type; every other type is a backbone. The table in docs/backbones.md is checked against them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from types import ModuleType

from family_models import more, older, packed, rows, tiled


def _public(*modules: ModuleType) -> dict[str, Callable[[Path], Path]]:
    """The functions of modules, by name."""
    return {
        name: value
        for module in modules
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", "") == module.__name__
    }


MODELS = _public(more, older, packed, rows, tiled)
VARIANTS = {"llava_pixtral": "llava", "idefics2_split": "idefics2"}  # further models of a type
# Packages without which a model or its processor cannot be made.
NEEDS = {
    **dict.fromkeys(("cohere2_vision", "lfm2_vl", "llama4", "llava_pixtral", "mistral3", "molmo2"), ("torchvision",)),
    "perception_lm": ("torchvision", "timm"),
}
# What the error says about a model that cannot be a backbone.
NO_TOWER = "no vision tower found in {}"
ENCODER_DECODER = "{} is an encoder-decoder model"
REFUSED = {
    "blip": "does not name its output head",
    "chameleon": NO_TOWER.format("ChameleonForConditionalGeneration"),
    "emu3": NO_TOWER.format("Emu3ForConditionalGeneration"),
    "fast_vlm": "convolutional",
    "florence2": ENCODER_DECODER.format("Florence2ForConditionalGeneration"),
    "fuyu": NO_TOWER.format("FuyuForCausalLM"),
    "gemma3n": "convolutional",
    "git": NO_TOWER.format("GitForCausalLM"),
    "idefics": "in turns",
    "kosmos_2": "padding of a batch",
    "kosmos_2_5": "padding of a batch",
    "pix2struct": ENCODER_DECODER.format("Pix2StructForConditionalGeneration"),
    "t5gemma2": ENCODER_DECODER.format("T5Gemma2ForConditionalGeneration"),
}
ONE_IMAGE = ("blip_2", "instructblip")  # exactly one image per sample
SUPPORTED = [name for name in MODELS if name not in REFUSED]


@cache
def folder_of(name: str) -> Path:
    """A model's folder, written once."""
    return MODELS[name](Path(mkdtemp()) / name)
