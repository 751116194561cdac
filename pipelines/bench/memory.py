"""Peak memory of `train-task`, all of its processes together, on samples of up to seven tiles of 448 × 448 pixels.

    python pipelines/bench/memory.py                         # 418 samples, three epochs; takes minutes
    python pipelines/bench/memory.py -- --workers 4          # further options of `dmole train-task`

The backbone is a tiny InternVL with random weights, so that nearly all memory is that of the libraries and of prepared images.
The printed value is the largest sum of the proportional set sizes (PSS: shared pages are divided among the processes that
share them) of the command and all processes that it started, sampled every 0.2 seconds. Linux only.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SAMPLES, EPOCHS, BATCH = 418, 3, 8
INTERVAL = 0.2  # seconds between two samples of the memory
TARGET = 2.5  # GB
SIDE, PATCH = 448, 14
SHAPES = ((640, 480), (896, 448))  # of the images: six tiles and a thumbnail, and two and a thumbnail
if __name__ == "__main__":  # as a script
    sys.path[0] = str(ROOT)


def build(folder: Path, rows: int = SAMPLES) -> None:
    """Write a tiny InternVL of 448 × 448 tiles, `rows` drawn images with questions, and the configuration that names both."""
    write_backbone(folder / "backbone")
    (folder / "rows.jsonl").write_text("".join(draw_rows(folder, rows)), encoding="utf-8")
    (folder / "task.toml").write_text(
        'title = "memory"\nformat = "llava"\nprompt = "{question}"\nmetric = "exact_match"\n'
        f"[recipe]\nepochs = {EPOCHS}\nbatch_size = {BATCH}\nlearning_rate = 0.0001\n"
        '[data]\ntrain = "rows.jsonl"\ntest = "rows.jsonl"\nimages = "."\n',
        encoding="utf-8",
    )
    settings = 'backbone = "backbone"\ndevice = "cpu"\ntasks = ["task.toml"]\nunseen = []\n'
    (folder / "dmole.toml").write_text(settings, encoding="utf-8")


def write_backbone(
    folder: Path,
    *,
    side: int = SIDE,
    vision: Mapping[str, Any] | None = None,
    text: Mapping[str, Any] | None = None,
    device: str = "cpu",
    dtype: str = "float32",
) -> None:
    """Write an InternVL with random weights; tiny, unless its configurations are changed.

    Args:
        folder: of the backbone.
        side: of a tile, in pixels.
        vision: changes of the vision encoder's configuration.
        text: changes of the language model's.
        device: on which the weights are drawn.
        dtype: of the weights.
    """
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    importlib.import_module("dmole_cli.backbones.families.internvl").tiny(folder)
    towers = {
        "vision_config": {"image_size": [side, side], "patch_size": [PATCH, PATCH], **(vision or {})},
        "text_config": {"max_position_embeddings": 8192, "vocab_size": 92_553, **(text or {})},
    }
    tokens = {"image_seq_length": (side // PATCH // 2) ** 2}  # four patches become one token
    _edit(folder / "config.json", towers | tokens)
    images = {"size": {"height": side, "width": side}, "max_patches": 6}
    _edit(folder / "processor_config.json", {"image_processor": images} | tokens)
    torch.manual_seed(0)
    with torch.device(device):
        config = AutoConfig.from_pretrained(folder)
        model = AutoModelForImageTextToText.from_config(config, dtype=getattr(torch, dtype))
    model.save_pretrained(folder)


def draw_rows(folder: Path, count: int) -> list[str]:
    """Write images of random squares into a folder; gives a line of an annotation file for each."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    lines = []
    for number in range(count):
        width, height = SHAPES[number % len(SHAPES)]
        blocks = random.integers(0, 255, (height // 16, width // 16, 3), dtype=np.uint8)
        Image.fromarray(np.kron(blocks, np.ones((16, 16, 1), np.uint8))).save(folder / f"{number}.jpg")
        turns = [{"from": "human", "value": "<image>\nWhat is in the image?"}, {"from": "gpt", "value": "a red circle"}]
        lines.append(json.dumps({"image": f"{number}.jpg", "conversations": turns}) + "\n")
    return lines


def _edit(path: Path, changes: dict[str, Any]) -> None:
    """Change values of a JSON file; a value that is an object updates the object in the file."""
    document = json.loads(path.read_text(encoding="utf-8"))
    for key, value in changes.items():
        document[key] = {**document[key], **value} if isinstance(value, dict) else value
    path.write_text(json.dumps(document), encoding="utf-8")


def peak_memory(command: Sequence[str], *, folder: Path) -> int:
    """Run a command in a folder; gives the largest sum of PSS over its process tree, in bytes.

    Raises:
        RuntimeError: the command failed.
    """
    import psutil

    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
    most = 0
    while process.poll() is None:
        most = max(most, _proportional(psutil.Process(process.pid)))
        time.sleep(INTERVAL)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
    return most


def _proportional(process: Any) -> int:
    """PSS of a process and of all its descendants, in bytes; a process that has just ended counts nothing."""
    import psutil

    total = 0
    try:
        for one in [process, *process.children(recursive=True)]:
            total += one.memory_full_info().pss
    except psutil.Error:
        pass
    return total


def measured(rows: int, *options: str) -> int:
    """Peak memory of `train-task` over so many samples, in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder), rows)
        train = [sys.executable, "-m", "dmole_cli", "train-task", "--method", "finetune", "--json", *options]
        return peak_memory(train, folder=Path(folder))


def compare(*, rounds: int | None = None, tiny: bool = False) -> list[Any]:
    """Peak memory in GB."""
    from pipelines.bench._timing import counted

    rows = 16 if tiny else SAMPLES
    return [counted(f"train-task, {rows} samples, all processes: peak GB", measured(rows) / 1e9, TARGET)]


def main() -> None:
    """Print the peak."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=SAMPLES, help=f"number of samples [{SAMPLES}]")
    parser.add_argument("options", nargs="*", help="options of train-task, after --")
    options = parser.parse_args()
    started = time.perf_counter()
    peak = measured(options.rows, *options.options)
    print(f"{options.rows} samples, {EPOCHS} epochs: peak {peak / 1e9:.2f} GB, {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
