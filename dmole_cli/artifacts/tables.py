"""Parquet files with a provenance header in their schema metadata."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmole_cli.artifacts.errors import ArtifactError, DamagedArtifact, MissingArtifact, require_file
from dmole_cli.artifacts.files import replacing
from dmole_cli.artifacts.kinds import Kind
from dmole_cli.artifacts.provenance import HEADER_KEY, Header, parse_header, verify_content
from dmole_cli.errors import DmoleWarning, first_line

if TYPE_CHECKING:
    import pyarrow as pa


def write_table(path: Path, rows: list[dict[str, Any]] | pa.Table, schema: pa.Schema, header: Header) -> None:
    """Write rows, or a table, as parquet (zstd, checksums), the header under the schema metadata key `dmole`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows, schema=schema)
    sealed = header.sealed(path, digest_of_table(table))
    table = table.replace_schema_metadata({HEADER_KEY: sealed.to_json()})
    with replacing(path) as file:
        pq.write_table(table, file, compression="zstd", write_page_checksum=True)


def read_table(path: Path, kind: Kind, *, anywhere: bool = False) -> tuple[pa.Table, Header]:
    """Read a table and its header.

    Args:
        path: the file.
        kind: of the artifact.
        anywhere: whether the file may lie at the path of another one, because its rows have content keys.

    Raises:
        ArtifactError: the file is missing, damaged, or of another kind.
    """
    import pyarrow.parquet as pq

    with _readable(path):
        # Not `read_table`, whose module imports pandas.
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            table = file.read()
        table.validate(full=True)
    header = _header(table.schema, path, kind, anywhere=anywhere)
    _require_columns(table.schema, path, kind)
    verify_content(header, digest_of_table(table), path)
    return table, header


def read_table_header(path: Path, kind: Kind) -> Header:
    """Read the header alone; the content is not compared with its digest.

    Raises:
        ArtifactError: the file is missing, is not a parquet file, or is of another kind.
    """
    import pyarrow.parquet as pq

    with _readable(path):
        schema = pq.read_schema(path)
    return _header(schema, path, kind)


def read_cache(path: Path, kind: Kind) -> pa.Table | None:
    """Read a table that only saves time; None where it does not exist, and with a warning where it cannot be used."""
    try:
        return read_table(path, kind)[0]
    except MissingArtifact:
        return None
    except ArtifactError as error:
        warnings.warn(DmoleWarning(f"{error.message}; it is a cache and is filled again"), stacklevel=2)
        return None


def read_column(path: Path, kind: Kind, column: str) -> tuple[pa.ChunkedArray, Header]:
    """Read one column, without a check of the digest, for a search in many files; what is used must be read by `read_table`.

    Raises:
        ArtifactError: as for `read_table`.
    """
    import pyarrow.parquet as pq

    with _readable(path):
        schema = pq.read_schema(path)
        header = _header(schema, path, kind, anywhere=True)
        _require_columns(schema, path, kind)
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            return file.read(columns=[column]).column(column), header


def digest_of_table(table: pa.Table) -> str:
    """sha256 over names, types and values of all columns, hexadecimal; independent of chunks, compression and Arrow's version."""
    digest = hashlib.sha256()
    for name, column in zip(table.column_names, table.columns, strict=True):
        digest.update(f"{name}\0{_type_name(column.type)}\0{len(column)}\0".encode())
        _update(digest, column)
    return digest.hexdigest()


def in_arrow(table: pa.Table) -> pa.Table:
    """A table as it was before it was written: Parquet has another name than Arrow for the entries of a list."""
    import pyarrow as pa

    kinds = [pa.list_(f.type.value_type) if pa.types.is_list(f.type) else f.type for f in table.schema]
    return table.cast(pa.schema(zip(table.column_names, kinds, strict=True), table.schema.metadata))


def _type_name(kind: pa.DataType) -> str:
    # Parquet names the entries of a list `element`, Arrow `item`.
    return str(kind).replace("element: ", "item: ")


def _update(digest: Any, column: pa.ChunkedArray) -> None:
    """Hash which values of a column are present, the lengths of lists and texts, and the values as little-endian bytes."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    digest.update(np.packbits(column.is_valid().to_numpy()).tobytes())
    column = column.drop_null()
    if pa.types.is_list(kind):
        digest.update(pc.list_value_length(column).to_numpy().astype("<i8").tobytes())
        _update(digest, pa.chunked_array([chunk.flatten() for chunk in column.chunks], kind.value_type))
    elif pa.types.is_string(kind):
        digest.update(pc.binary_length(column).to_numpy().astype("<i8").tobytes())
        for value in column.cast(pa.large_binary()).to_numpy():
            digest.update(value)
    else:
        values = column.to_numpy()
        digest.update(values.astype(values.dtype.newbyteorder("<")).tobytes())


def _header(schema: pa.Schema, path: Path, kind: Kind, *, anywhere: bool = False) -> Header:
    return parse_header((schema.metadata or {}).get(HEADER_KEY.encode()), path=path, kind=kind, anywhere=anywhere)


def _require_columns(schema: pa.Schema, path: Path, kind: Kind) -> None:
    found = {field.name: _type_name(field.type) for field in schema}
    wrong = [f"{name} ({text})" for name, text in kind.columns.items() if found.get(name) != text]
    if wrong or len(schema.names) != len(found):
        raise DamagedArtifact(path, f"{path} is damaged: it must have the columns {', '.join(wrong) or 'once each'}")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    import pyarrow as pa

    require_file(path)
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError, MemoryError) as error:
        raise DamagedArtifact(path, f"{path} cannot be read as parquet: {first_line(error)}") from error
