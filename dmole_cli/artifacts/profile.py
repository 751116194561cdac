"""`profiles/<task>.parquet`: sensitivity of a task's loss to each candidate site, a row per site in forward order."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path

from dmole_cli.artifacts.kinds import PROFILE
from dmole_cli.artifacts.provenance import Header, require_facts
from dmole_cli.artifacts.tables import read_table, write_table


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


def write_profile(path: Path, rows: list[SiteProfile], header: Header) -> None:
    """Write the rows in the order given; further fields of a subclass become columns at the end."""
    import pyarrow as pa

    kinds = {"str": pa.string(), "int": pa.int64(), "float": pa.float64()}
    schema = pa.schema([(field.name, kinds[str(field.type)]) for field in fields(rows[0])])
    write_table(path, [asdict(row) for row in rows], schema, header)


def read_profile(path: Path) -> tuple[list[SiteProfile], Header]:
    """Read (rows, header); columns beyond those of `SiteProfile` are not read."""
    table, header = read_table(path, PROFILE)
    require_facts(header, ("backbone_parameters",), path=path)
    columns = table.select([field.name for field in fields(SiteProfile)])
    return [SiteProfile(**row) for row in columns.to_pylist()], header
