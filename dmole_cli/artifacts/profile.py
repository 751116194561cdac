"""`profiles/<task>.parquet`: sensitivity of a task's loss to each candidate site, a row per site in forward order."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field

from dmole_cli.artifacts.errors import DamagedArtifact, require_file
from dmole_cli.artifacts.kinds import PROFILE
from dmole_cli.artifacts.provenance import HEADER_KEY, Header, validated
from dmole_cli.artifacts.tables import read_table, write_table
from dmole_cli.errors import first_line

if TYPE_CHECKING:
    import pyarrow as pa

MODALITIES = ("vision", "language")
MOST_SITES = 1_000_000  # rows of a file that are read; no backbone has as many linear modules


class _Facts(BaseModel):
    """What the reader of a profile needs from its header."""

    backbone_parameters: int = Field(ge=1)


@dataclass(frozen=True)
class SiteProfile:
    """Sensitivity of one site.

    Attributes:
        site: module path in the backbone.
        modality: `vision` or `language`.
        block: index of the block in its tower.
        kind: last part of the path, e.g. `q_proj`.
        in_features: width of the input.
        out_features: width of the output.
        parameters: of the site itself (weight and bias).
        score: norm of the gradient accumulated over the batches, divided by their number.
        norm_mean: mean of the per-batch norms.
        norm_std: their population standard deviation.
        batches: batches of equal weight that were measured.
        samples: samples in them.
    """

    site: str
    modality: str
    block: int
    kind: str
    in_features: int
    out_features: int
    parameters: int
    score: float
    norm_mean: float
    norm_std: float
    batches: int
    samples: int

    @property
    def reached(self) -> bool:
        """Whether any batch had a gradient at the site."""
        return self.score > 0 or self.norm_mean > 0


def write_profile(path: Path, rows: list[SiteProfile], header: Header) -> None:
    """Write the rows in the order given; further fields of a subclass become columns at the end, those that are None do not."""
    import pyarrow as pa

    kinds = {"str": pa.string(), "int": pa.int64(), "float": pa.float64(), "tuple[float, ...]": pa.list_(pa.float64())}
    known = [field for field in fields(rows[0]) if getattr(rows[0], field.name) is not None]
    schema = pa.schema([(field.name, kinds[str(field.type).removesuffix(" | None")]) for field in known])
    write_table(path, [{field.name: getattr(row, field.name) for field in known} for row in rows], schema, header)


def read_profile(path: Path) -> tuple[list[SiteProfile], Header]:
    """Read (rows, header); columns beyond those of `SiteProfile` are not read.

    Raises:
        ArtifactError: the file is missing, damaged, or of another kind.
    """
    table, header = read_table(path, PROFILE)
    validated(_Facts, dict(header.facts), path=path)
    return _rows(table, path), header


def read_spectra(path: Path) -> dict[str, tuple[float, ...]]:
    """Site -> the largest singular values of its gradient, of a valid profile; empty where it has none.

    Raises:
        ArtifactError: the file cannot be read, or the column `spectrum` is not a list of finite numbers of 0 or more.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    require_file(path)
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            if "spectrum" not in file.schema_arrow.names:
                return {}
            table = file.read(columns=["site", "spectrum"])
        rows = {row["site"]: tuple(map(float, row["spectrum"])) for row in table.to_pylist()}
    except (pa.ArrowException, OSError, TypeError, ValueError) as error:
        raise DamagedArtifact(path, f"the column spectrum of {path} is invalid: {first_line(error)}") from error
    if any(not math.isfinite(value) or value < 0 for values in rows.values() for value in values):
        raise DamagedArtifact(path, f"the column spectrum of {path} has values that are negative or not finite")
    return rows


def read_profile_file(path: Path) -> tuple[list[SiteProfile], Header | None]:
    """Read (rows, header) of a file that may have been written by another tool: without a header of dmole, the header is None.

    Raises:
        ArtifactError: the file is missing or damaged, lacks a column, or holds an invalid value.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    require_file(path)
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            if HEADER_KEY.encode() in (file.schema_arrow.metadata or {}):
                return read_profile(path)
            if file.metadata.num_rows > MOST_SITES:
                raise DamagedArtifact(path, f"{path} is not a valid profile: it has {file.metadata.num_rows} rows")
            table = file.read()
    except (pa.ArrowException, OSError) as error:
        raise DamagedArtifact(path, f"{path} cannot be read as parquet: {first_line(error)}") from error
    return _rows(table, path), None


def _rows(table: pa.Table, path: Path) -> list[SiteProfile]:
    """The rows of a table, after a check of columns, types and values."""
    names = [field.name for field in fields(SiteProfile)]
    counts = Counter(table.column_names)
    problems = [f"there is no column '{name}'" for name in names if not counts[name]]
    problems += [f"there are {counts[name]} columns '{name}'" for name in names if counts[name] > 1]
    if not problems:
        problems = [problem for field in fields(SiteProfile) for problem in _wrong_column(table[field.name], field)]
    if not problems:
        rows = [SiteProfile(**row) for row in table.select(names).to_pylist()]
        problems = _wrong_values(rows)
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise DamagedArtifact(path, f"{path} is not a valid profile: {'; '.join(problems[:3])}{more}")
    return rows


def _wrong_column(column: pa.ChunkedArray, field: Any) -> list[str]:
    import pyarrow as pa

    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    texts = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    fits = {
        "str": texts,
        "int": pa.types.is_integer(kind),
        "float": pa.types.is_floating(kind) or pa.types.is_integer(kind),
    }
    words = {"str": "text", "int": "whole numbers", "float": "numbers"}[str(field.type)]
    if not fits[str(field.type)]:
        return [f"column '{field.name}' has values of type {column.type}, not {words}"]
    return [f"column '{field.name}' has {column.null_count} empty value(s)"] if column.null_count else []


def _wrong_values(rows: list[SiteProfile]) -> list[str]:
    if not rows:
        return ["it has no rows"]
    problems = [f"{site} is listed {n} times" for site, n in Counter(row.site for row in rows).items() if n > 1]
    for row in rows:
        if not row.site:
            problems.append("a site has no name")
        if row.modality not in MODALITIES:
            problems.append(f"the modality of {row.site} is {row.modality!r}, not {' or '.join(MODALITIES)}")
        for name, value in asdict(row).items():
            least = 1 if name in ("in_features", "out_features") else 0
            if not isinstance(value, str) and not (math.isfinite(value) and value >= least):
                problems.append(f"{name} of {row.site} is {value}")
    return problems
