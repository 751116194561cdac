"""Bytes on disk: one task's expert file, and nine tasks against the reference's layout, for the sizes of InternVL2-2B.

After task t, the reference's folder contains the experts of tasks 1 to t and the connector between the towers, both twice
(`lora_weights.bin`, `model.safetensors`) and in bfloat16; optimiser states are not counted. Half of the attention projections
host an expert of rank 8, a quarter of them in the vision encoder. Expert files of dmole are float32.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from dmole_cli.artifacts.expert import ExpertFile, read_expert, write_expert
from dmole_cli.artifacts.kinds import EXPERT
from dmole_cli.artifacts.provenance import Header
from pipelines.bench._models import RANK, SCALE
from pipelines.bench._timing import Row, counted

TASKS = 9
HEADER = 64 * 1024  # bytes for names and provenance
BLOCKS = 24  # in either tower
WIDTHS = {  # (in, out) of a block's fused projection and its output projection
    "vision_model.encoder.layers.{}.attn.qkv": (1024, 3072),
    "vision_model.encoder.layers.{}.attn.proj": (1024, 1024),
    "language_model.model.layers.{}.attention.wqkv": (2048, 4096),
    "language_model.model.layers.{}.attention.wo": (2048, 2048),
}
CONNECTOR = 2 * 4096 + (4096 * 2048 + 2048) + (2048 * 2048 + 2048)  # norm, linear, linear


def expert(*, blocks: int) -> ExpertFile:
    """An expert on one block in four of the vision encoder and three in four of the language model."""
    sites = {
        name.format(block): (torch.randn(RANK, width_in), torch.randn(width_out, RANK))
        for name, (width_in, width_out) in WIDTHS.items()
        for block in range(blocks)
        if (block % 4 == 0) == name.startswith("vision")
    }
    settings = {"method": "d-mole", "epochs": 1, "batch_size": 80, "learning_rate": 1e-4, "dropout": 0.0}
    inputs = {f"experts/task-{number}.safetensors": "0" * 64 for number in range(TASKS)}
    return ExpertFile(sites, SCALE, Header.of(EXPERT, backbone="0" * 64, seed=0, settings=settings, inputs=inputs))


def reference_layout(parameters: int, *, tasks: int) -> int:
    """Bytes of the reference's folders after all tasks."""
    return sum(2 * 2 * (CONNECTOR + task * parameters) for task in range(1, tasks + 1))


def compare(*, rounds: int | None = None, tiny: bool = False) -> list[Row]:
    """Sizes of written files; those of the reference are computed."""
    written = expert(blocks=4 if tiny else BLOCKS)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "task.safetensors"
        write_expert(path, written)
        size = path.stat().st_size
        again = read_expert(path)
    assert all(
        torch.equal(a, again.sites[s][0]) and torch.equal(b, again.sites[s][1]) for s, (a, b) in written.sites.items()
    )
    reference = reference_layout(written.parameters, tasks=TASKS)
    return [
        counted("expert file: bytes over 4 x parameters + 64 KB", size / (4 * written.parameters + HEADER), 1.02),
        counted("nine tasks: bytes of the expert files over the reference's folders", TASKS * size / reference, 1 / 8),
    ]
