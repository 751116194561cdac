"""Parquet files with a provenance header in their schema metadata."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmole_cli.artifacts.errors import DamagedArtifact, MissingArtifact
from dmole_cli.artifacts.files import replacing
from dmole_cli.artifacts.kinds import Kind
from dmole_cli.artifacts.provenance import HEADER_KEY, Header, parse_header
from dmole_cli.errors import first_line

if TYPE_CHECKING:
    import pyarrow as pa


def write_table(path: Path, rows: list[dict[str, Any]] | pa.Table, schema: pa.Schema, header: Header) -> None:
    """Write rows, or a table, as parquet (zstd, checksums), the header under the schema metadata key `dmole`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows, schema=schema)
    table = table.replace_schema_metadata({HEADER_KEY: header.to_json()})
    with replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)


def read_table(path: Path, kind: Kind, *, columns: list[str] | None = None) -> tuple[pa.Table, Header]:
    """Read a table and its header.

    Args:
        path: the file.
        kind: the kind of artifact that it must be.
        columns: those to read, None for all.

    Raises:
        ArtifactError: the file is missing, damaged, or of another kind.
    """
    import pyarrow.parquet as pq

    with _readable(path):
        table = pq.read_table(path, columns=columns, page_checksum_verification=True)
    return table, _header(table.schema, path, kind)


def table_header(path: Path, kind: Kind) -> Header:
    """Read a table's header alone.

    Raises:
        ArtifactError: as for `read_table`.
    """
    import pyarrow.parquet as pq

    with _readable(path):
        schema = pq.read_schema(path)
    return _header(schema, path, kind)


def _header(schema: pa.Schema, path: Path, kind: Kind) -> Header:
    return parse_header((schema.metadata or {}).get(HEADER_KEY.encode()), path=path, kind=kind)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    import pyarrow as pa

    if not path.exists():
        raise MissingArtifact(path)
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise DamagedArtifact(path, f"{path} cannot be read as parquet: {first_line(error)}") from error
