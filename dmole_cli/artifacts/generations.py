"""`generations/<task>.parquet`: predictions by content key, so that none is generated twice in a run directory."""

from __future__ import annotations

from pathlib import Path

from dmole_cli.artifacts.kinds import GENERATIONS
from dmole_cli.artifacts.provenance import Header
from dmole_cli.artifacts.tables import read_cache, write_table


def write_generations(path: Path, answers: dict[str, str], fingerprint: str) -> None:
    """Write predictions by content key, sorted, so that the bytes do not depend on the order of evaluations."""
    import pyarrow as pa

    schema = pa.schema([("key", pa.string()), ("answer", pa.string())])
    rows = [{"key": key, "answer": answers[key]} for key in sorted(answers)]
    write_table(path, rows, schema, Header.of(GENERATIONS, backbone=fingerprint))


def read_generations(path: Path) -> dict[str, str]:
    """Read predictions by content key; empty where the file does not exist, and with a warning where it is damaged."""
    table = read_cache(path, GENERATIONS)
    return (
        {}
        if table is None
        else dict(zip(table.column("key").to_pylist(), table.column("answer").to_pylist(), strict=True))
    )
