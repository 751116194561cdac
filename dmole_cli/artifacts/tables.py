"""Parquet files with a provenance header in their schema metadata."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmole_cli.artifacts.files import replacing
from dmole_cli.artifacts.provenance import HEADER_KEY, Header, read_header
from dmole_cli.errors import DmoleError

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


def read_table(
    path: Path, *, schema: str, version: int, hint: str, columns: list[str] | None = None
) -> tuple[pa.Table, Header]:
    """Read a table and its header.

    Args:
        path: the file.
        schema: the kind of artifact that it must be.
        version: of that kind's layout.
        hint: how to make the file.
        columns: those to read, None = all.

    Raises:
        DmoleError: the file is missing, damaged, or of another schema.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.exists():
        raise DmoleError(f"{path} is not there", hint)
    try:
        table = pq.read_table(path, columns=columns, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise DmoleError(f"{path} cannot be read as parquet: {str(error).splitlines()[0]}", hint) from error
    raw = (table.schema.metadata or {}).get(HEADER_KEY.encode())
    return table, read_header(raw, path=path, schema=schema, version=version)


def header_of_table(path: Path, *, schema: str, version: int) -> Header | None:
    """Read a table's header alone; None where the file is not there."""
    if not path.exists():
        return None
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        metadata = pq.read_schema(path).metadata or {}
    except (pa.ArrowException, OSError) as error:
        raise DmoleError(
            f"{path} cannot be read as parquet: {str(error).splitlines()[0]}", "delete it and run the stage again"
        ) from error
    return read_header(metadata.get(HEADER_KEY.encode()), path=path, schema=schema, version=version)
