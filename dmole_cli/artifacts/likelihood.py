"""`likelihoods/<method>/<after>/<task>.parquet`: likelihoods of the reference answers of each evaluated sample.

Separate from the evaluations, so that neither makes the other stale. `likelihoods/cache/<task>.parquet` holds
computed likelihoods by content key.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from dmole_cli.artifacts.errors import DamagedArtifact
from dmole_cli.artifacts.kinds import LIKELIHOOD, LIKELIHOOD_CACHE
from dmole_cli.artifacts.provenance import Header
from dmole_cli.artifacts.tables import read_cache, read_table, write_table


@dataclass(frozen=True)
class Likelihoods:
    """Likelihoods of some answers to one sample.

    Attributes:
        sums: log-likelihood of each answer in nats, its end token included.
        tokens: number of tokens of each answer, its end token included.
    """

    sums: Sequence[float]
    tokens: Sequence[int]


@dataclass(frozen=True)
class Likelihood:
    """One evaluated sample.

    Attributes:
        sample_id: of the evaluated split.
        log_likelihood: of the reference answer in nats per token, its end token included; the best of several references.
        ranked_first: whether a right answer is more probable than every wrong one of a closed set; None for an open task.
        active: active experts, lowest reconstruction loss first.
    """

    sample_id: str
    log_likelihood: float
    ranked_first: bool | None
    active: list[str]


def write_likelihood(path: Path, rows: list[Likelihood], header: Header) -> None:
    """Write the rows in the order of the split."""
    import pyarrow as pa

    schema = pa.schema(
        [
            ("sample_id", pa.string()),
            ("log_likelihood", pa.float64()),
            ("ranked_first", pa.bool_()),
            ("active", pa.list_(pa.string())),
        ]
    )
    write_table(path, [asdict(row) for row in rows], schema, header)


def read_likelihood(path: Path) -> tuple[list[Likelihood], Header]:
    """Read (rows, header).

    Raises:
        ArtifactError: the file is missing, damaged or of another kind, or a likelihood is not a number.
    """
    table, header = read_table(path, LIKELIHOOD)
    rows = [Likelihood(**row) for row in table.select(list(LIKELIHOOD.columns)).to_pylist()]
    if any(row.log_likelihood is None or math.isnan(row.log_likelihood) for row in rows):
        raise DamagedArtifact(path, f"{path} is damaged: a likelihood is not a number")
    return rows, header


def write_likelihood_cache(path: Path, likelihoods: Mapping[str, Likelihoods], fingerprint: str) -> None:
    """Write likelihoods by content key, sorted, so that the bytes do not depend on the order of evaluations."""
    import pyarrow as pa

    schema = pa.schema([("key", pa.string()), ("sums", pa.list_(pa.float64())), ("tokens", pa.list_(pa.int32()))])
    rows = [{"key": key, **asdict(likelihoods[key])} for key in sorted(likelihoods)]
    write_table(path, rows, schema, Header.of(LIKELIHOOD_CACHE, backbone=fingerprint))


def read_likelihood_cache(path: Path) -> dict[str, Likelihoods]:
    """Read likelihoods by content key; empty where the file does not exist, and with a warning where it is damaged."""
    table = read_cache(path, LIKELIHOOD_CACHE)
    rows = table.to_pylist() if table is not None else []
    return {row["key"]: Likelihoods(row["sums"], row["tokens"]) for row in rows}
