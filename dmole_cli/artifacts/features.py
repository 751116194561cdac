"""`features/<task>.parquet`: one routing feature per sample, reused by every later stage and split."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dmole_cli.artifacts.errors import DamagedArtifact
from dmole_cli.artifacts.kinds import FEATURES
from dmole_cli.artifacts.provenance import Header, versions
from dmole_cli.artifacts.tables import read_column, read_table, write_table
from dmole_cli.errors import DmoleError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    import torch

ROWS = 1 << 16  # rows per Arrow array, whose offsets have 31 bits


def write_features(path: Path, sample_ids: list[str], keys: list[str], features: torch.Tensor, header: Header) -> None:
    """Write features [samples, width] (float32, L2-normalised), a row per sample with its cache key."""
    import pyarrow as pa

    # Not from Python numbers, which take eight times the memory of a float.
    blocks = [_lists(block) for block in features.split(ROWS)]
    columns = {"sample_id": pa.array(sample_ids, pa.string()), "key": pa.array(keys, pa.string())}
    table = pa.table(columns | {"feature": pa.chunked_array(blocks, pa.list_(pa.float32()))})
    write_table(path, table, table.schema, header)


def _lists(features: torch.Tensor) -> pa.ListArray:
    import pyarrow as pa

    ends = pa.array(range(0, features.numel() + 1, features.shape[1]), pa.int32())
    return pa.ListArray.from_arrays(ends, pa.array(features.contiguous().flatten().numpy()))


def read_features(path: Path) -> tuple[list[str], torch.Tensor, Header]:
    """Read (sample ids, features [samples, width], header).

    Raises:
        ArtifactError: the file is missing, damaged or of another kind, or a feature is not finite.
    """
    import torch

    sample_ids, features, header = read_feature_arrays(path)
    return sample_ids, torch.from_numpy(features), header


def read_feature_arrays(path: Path) -> tuple[list[str], np.ndarray, Header]:
    """Read (sample ids, features [samples, width], header) for computations in numpy; torch is not imported.

    Raises:
        ArtifactError: as for `read_features`.
    """
    import numpy as np

    table, header = read_table(path, FEATURES)
    try:
        features = _values(table, sum(int(part["width"]) for part in header.settings["layout"]))
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedArtifact(path, f"{path} is damaged: its rows do not have the width of its layout") from error
    if not np.isfinite(features).all():
        raise DamagedArtifact(path, f"{path} is damaged: a feature is not finite")
    return table.column("sample_id").to_pylist(), features, header


def cached_features(
    folder: Path, wanted: Collection[str], *, width: int, libraries: Sequence[str]
) -> dict[str, torch.Tensor]:
    """Features [width] by key, of the wanted keys, from all feature files of a folder.

    Files that cannot be read are skipped: the stage that needs such a file reports it. Files that other versions of
    the `libraries` wrote are skipped, too, because their last bits may differ.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import torch

    current = versions(*libraries)
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.parquet")):
        left = pa.array(set(wanted) - found.keys(), pa.string())
        try:
            keys, header = read_column(path, FEATURES, "key")
            same = all(header.versions.get(name) == current[name] for name in libraries)
            if not same or not pc.any(pc.is_in(keys, left)).as_py():
                continue
            table, _ = read_table(path, FEATURES, anywhere=True)
            table = table.filter(pc.is_in(table["key"], left))
            found.update(zip(table["key"].to_pylist(), torch.from_numpy(_values(table, width)), strict=True))
        except (
            DmoleError,
            pa.ArrowException,
            KeyError,
            OSError,
            ValueError,
        ):  # damaged, or no feature file
            continue
    return found


def _values(table: pa.Table, width: int) -> np.ndarray:
    """The column of features as an array [rows, width]; -1 for the width of the file."""
    import numpy as np
    import pyarrow as pa

    kind = table.schema.field("feature").type
    if not (pa.types.is_list(kind) and pa.types.is_float32(kind.value_type)):
        raise ValueError(f"the column of features holds {kind}")
    blocks = [block.flatten().to_numpy(zero_copy_only=False) for block in table.column("feature").chunks]
    flat = np.concatenate(blocks) if blocks else np.zeros(0)
    return np.array(flat, dtype=np.float32).reshape(table.num_rows, width)
