"""`features/<task>.parquet`: one routing feature per sample, kept and reused by every later stage."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dmole_cli.artifacts.provenance import Header
from dmole_cli.artifacts.tables import header_of_table, read_table, write_table

if TYPE_CHECKING:
    import torch

SCHEMA, VERSION = "dmole.features", 1


def write_features(path: Path, sample_ids: list[str], features: torch.Tensor, header: Header) -> None:
    """Write features [samples, width] (float32, L2-normalised), a row per sample."""
    import pyarrow as pa

    schema = pa.schema([("sample_id", pa.string()), ("feature", pa.list_(pa.float32()))])
    rows = [{"sample_id": i, "feature": f} for i, f in zip(sample_ids, features.tolist(), strict=True)]
    write_table(path, rows, schema, header)


def read_features(path: Path, *, hint: str) -> tuple[list[str], torch.Tensor, Header]:
    """Read (sample ids, features [samples, width], header)."""
    import numpy as np
    import torch

    table, header = read_table(path, schema=SCHEMA, version=VERSION, hint=hint)
    flat = table.column("feature").combine_chunks().flatten().to_numpy(zero_copy_only=False)
    values = torch.from_numpy(np.array(flat, dtype=np.float32)).reshape(table.num_rows, -1)
    return table.column("sample_id").to_pylist(), values, header


def features_header(path: Path) -> Header | None:
    """Read the header alone."""
    return header_of_table(path, schema=SCHEMA, version=VERSION)
