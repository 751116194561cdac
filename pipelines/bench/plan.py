"""Estimates of `dmole plan` against processes: estimated and measured peak memory of `profile` and `train-task`.

Two backbones with random weights, of LLaVA's shape (140 million parameters) and InternVL's (170 million), saved in folders as
users have them. Every command runs in its own process, whose maximum resident size the system reports at its end; other load on
the machine does not change it. Also prints measured and estimated megabytes of every setting:

    python pipelines/bench/run.py --only plan
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from pipelines.bench._timing import Row, counted

ROOT = Path(__file__).parents[2]
SAMPLES = 16
QUESTION = "What colour is the large image, and which of its corners is the darkest one of all? Answer in a word."
TARGET = 0.15


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
class Setting:
    """A command to measure: the stage, the batch size, and whether activation checkpointing is on."""

    stage: str
    batch_size: int
    checkpointing: bool = False

    def __str__(self) -> str:
        """As printed."""
        return f"{self.stage}, batches of {self.batch_size}" + (", checkpointing" if self.checkpointing else "")


CASES = {
    Shape("llava", (12, 384), (12, 640), 32_000, 224, 16, 196): (
        Setting("profile", 2),
        Setting("profile", 8),
        Setting("profile", 8, checkpointing=True),
        Setting("train-task", 4),
        Setting("train-task", 4, checkpointing=True),
    ),
    Shape("internvl", (12, 448), (16, 704), 48_000, 224, 14, 64): (
        Setting("profile", 4),
        Setting("train-task", 8),
    ),
}
TINY = {Shape("llava", (2, 64), (2, 128), 300, 28, 14, 4): (Setting("profile", 2), Setting("train-task", 2))}


def compare(*, rounds: int | None = None, tiny: bool = False) -> list[Row]:
    """Relative error of every estimate; measurements repeat exactly enough that there are no rounds."""
    found = []
    for shape, settings in (TINY if tiny else CASES).items():
        with tempfile.TemporaryDirectory() as folder:
            # In its own process: on Linux, the maximum resident size of a child starts at that of its parent.
            building = multiprocessing.get_context("spawn").Process(target=build, args=(shape, Path(folder)))
            building.start()
            building.join()
            found += [_row(shape, setting, Path(folder)) for setting in settings]
    return found


def _row(shape: Shape, setting: Setting, folder: Path) -> Row:
    measured = _measure(setting, folder)
    options = ("--task", "task", "--json", "--batch-size", str(setting.batch_size))
    planned = json.loads(_dmole("plan", *options, folder=folder)[0])
    [row] = [
        row
        for row in planned["memory"]
        if (row["work"], row["checkpointing"]) == (setting.stage, setting.checkpointing)
    ]
    print(
        f"plan: {shape.family}, {planned['parameters'] / 1e6:.0f} M, {setting}: measured {measured / 1e6:,.0f} MB, estimated "
        f"{row['process'] / 1e6:,.0f} MB (tensors {row['tensors'] / 1e6:,.0f}, weights {row['weights'] / 1e6:,.0f}, "
        f"libraries {row['libraries'] / 1e6:,.0f})",
        file=sys.stderr,
        flush=True,
    )
    return counted(f"plan: {shape.family}, {setting}: relative error", abs(row["process"] / measured - 1), TARGET)


def _measure(setting: Setting, folder: Path) -> int:
    """Peak resident memory of the command, in bytes."""
    options = ["--task", "task", "--batch-size", str(setting.batch_size), "--force"]
    options += ["--checkpointing"] if setting.checkpointing else []
    if setting.stage == "train-task":
        _dmole("allocate", "--task", "task", "--force", folder=folder)
        _dmole("train-router", "--task", "task", folder=folder)
    return _dmole(setting.stage, *options, folder=folder)[1]


def _dmole(*args: str, folder: Path) -> tuple[str, int]:
    """Run a command; gives its stdout and its maximum resident size in bytes."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "dmole_cli", *args]
    with (folder / "stdout").open("w+", encoding="utf-8") as stdout:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=stdout)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
        stdout.seek(0)
        return stdout.read(), usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def build(shape: Shape, folder: Path) -> None:
    """Write a backbone, a task of images and questions, and the configuration that names both."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    backbone = folder / "backbone"
    importlib.import_module(f"dmole_cli.backbones.families.{shape.family}").tiny(backbone)
    _edit(backbone / "config.json", _sizes(shape))
    _edit(backbone / "processor_config.json", _image_sizes(shape))
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(backbone), dtype=torch.float32)
    model.save_pretrained(backbone)
    rows = []
    for number in range(SAMPLES):
        Image.new("RGB", (shape.side, shape.side), (9 * number, 90, 255 - 9 * number)).save(folder / f"{number}.png")
        turns = [{"from": "human", "value": f"<image>\n{QUESTION}"}, {"from": "gpt", "value": "a dark red"}]
        rows.append(json.dumps({"image": f"{number}.png", "conversations": turns}) + "\n")
    (folder / "rows.jsonl").write_text("".join(rows), encoding="utf-8")
    splits = "".join(f'{split} = "rows.jsonl"\n' for split in ("train", "validation", "test"))
    (folder / "task.toml").write_text(
        'title = "memory"\nformat = "llava"\nprompt = "{question}"\nmetric = "exact_match"\n'
        f'[recipe]\nepochs = 1\nbatch_size = 4\nlearning_rate = 0.001\n[data]\n{splits}images = "."\n',
        encoding="utf-8",
    )
    (folder / "dmole.toml").write_text(
        'backbone = "backbone"\ndevice = "cpu"\ntasks = ["task.toml"]\nunseen = []\n'
        '[profile]\nportion = 1.0\n[allocate]\nbudget = "sites:50%"\n'
        "[router]\nepochs = 1\n",
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
