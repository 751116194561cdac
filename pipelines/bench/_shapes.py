"""Backbones with random weights in the shape of a family, saved in folders as users have them, with tasks of plain images."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

QUESTION = "What colour is the large image, and which of its corners is the darkest one of all? Answer in a word."


@dataclass(frozen=True)
class Shape:
    """A backbone to build.

    Attributes:
        family: file of `backbones/families/` that builds its configuration and processor.
        vision: layers and width of the vision encoder.
        language: layers and width of the language model.
        words: size of the vocabulary.
        side: of an image, in pixels.
        patch: side of a patch, in pixels.
        image_tokens: tokens per image.
    """

    family: str
    vision: tuple[int, int]
    language: tuple[int, int]
    words: int
    side: int
    patch: int
    image_tokens: int


@dataclass(frozen=True)
class Stream:
    """The tasks of a backbone, and their settings.

    Attributes:
        tasks: names.
        rows: samples of each split.
        portion: share of the training split that is profiled.
        router_epochs: maximum number of epochs of a router.
    """

    tasks: tuple[str, ...] = ("task",)
    rows: int = 16
    portion: float = 1.0
    router_epochs: int = 1


def build(shape: Shape, stream: Stream, folder: Path) -> None:
    """Write a backbone, tasks of images and questions, and the configuration that names both."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    backbone = folder / "backbone"
    importlib.import_module(f"dmole_cli.backbones.families.{shape.family}").tiny(backbone)
    _edit(backbone / "config.json", _sizes(shape))
    _edit(backbone / "processor_config.json", _image_sizes(shape))
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(backbone), dtype=torch.float32)
    model.save_pretrained(backbone)
    for place, task in enumerate(stream.tasks):
        _write_task(folder, task, shape.side, count=stream.rows, blue=90 * (place + 1) % 256)
    cards = ", ".join(f'"{task}.toml"' for task in stream.tasks)
    (folder / "dmole.toml").write_text(
        f'backbone = "backbone"\ndevice = "cpu"\ntasks = [{cards}]\nunseen = []\n'
        f'[profile]\nportion = {stream.portion}\n[allocate]\nbudget = "sites:50%"\n'
        f"[router]\nepochs = {stream.router_epochs}\n",
        encoding="utf-8",
    )


def _write_task(folder: Path, task: str, side: int, *, count: int, blue: int) -> None:
    rows = []
    for number in range(count):
        shade = 9 * number % 256
        Image.new("RGB", (side, side), (shade, blue, 255 - shade)).save(folder / f"{task}-{number}.png")
        turns = [{"from": "human", "value": f"<image>\n{QUESTION}"}, {"from": "gpt", "value": "a dark red"}]
        rows.append(json.dumps({"image": f"{task}-{number}.png", "conversations": turns}) + "\n")
    (folder / f"{task}.jsonl").write_text("".join(rows), encoding="utf-8")
    splits = "".join(f'{split} = "{task}.jsonl"\n' for split in ("train", "validation", "test"))
    (folder / f"{task}.toml").write_text(
        f'title = "{task}"\nformat = "llava"\nprompt = "{{question}}"\nmetric = "exact_match"\n'
        "[generation]\nmax_new_tokens = 8\n"
        f'[recipe]\nepochs = 1\nbatch_size = 4\nlearning_rate = 0.001\n[data]\n{splits}images = "."\n',
        encoding="utf-8",
    )


def _edit(path: Path, changes: Mapping[str, Any]) -> None:
    """Change values of a JSON file; a value that is an object updates the object in the file."""
    document = json.loads(path.read_text(encoding="utf-8"))
    for key, value in changes.items():
        document[key] = {**document[key], **value} if isinstance(value, dict) else value
    path.write_text(json.dumps(document), encoding="utf-8")


def _sizes(shape: Shape) -> dict[str, Any]:
    square = shape.family == "internvl"  # whose configuration has both sides
    text = {
        "num_hidden_layers": shape.language[0],
        "hidden_size": shape.language[1],
        "intermediate_size": 4 * shape.language[1],
        "num_attention_heads": shape.language[1] // 64,
        "num_key_value_heads": 1,
        "head_dim": 64,
        "vocab_size": shape.words,
    }
    vision = {
        "num_hidden_layers": shape.vision[0],
        "hidden_size": shape.vision[1],
        "intermediate_size": 4 * shape.vision[1],
        "num_attention_heads": shape.vision[1] // 64,
        "image_size": [shape.side] * 2 if square else shape.side,
        "patch_size": [shape.patch] * 2 if square else shape.patch,
    }
    layers = {"layer_types": ["full_attention"] * shape.language[0]} if square else {}
    return {"text_config": text | layers, "vision_config": vision, "image_seq_length": shape.image_tokens}


def _image_sizes(shape: Shape) -> dict[str, Any]:
    size = {"height": shape.side, "width": shape.side}
    if shape.family == "internvl":
        return {"image_processor": {"size": size}, "image_seq_length": shape.image_tokens}
    return {"image_processor": {"size": {"shortest_edge": shape.side}, "crop_size": size}, "patch_size": shape.patch}
