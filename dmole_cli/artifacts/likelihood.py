"""`likelihoods/<method>/<stage>/<task>.parquet`: how likely the model finds the reference answers of each test sample.

Apart from the evaluations, so that neither makes the other stale. `likelihoods/cache/<task>.parquet` keeps what was computed by
content key, as the generations do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from dmole_cli.artifacts.kinds import LIKELIHOOD, LIKELIHOOD_CACHE
from dmole_cli.artifacts.provenance import Header
from dmole_cli.artifacts.tables import read_table, write_table


@dataclass(frozen=True)
class Likelihoods:
    """How likely a model finds some answers to one sample.

    Attributes:
        sums: natural logarithm of each answer's probability, its end included.
        tokens: of each answer, its end included.
    """

    sums: Sequence[float]
    tokens: Sequence[int]


@dataclass(frozen=True)
class Likelihood:
    """One test sample.

    Attributes:
        sample_id: of the task's test split.
        log_likelihood: of the reference answer in nats per token, its end included; of several references the best.
        ranked_first: whether a right answer is more probable than every wrong one of the closed set; None where it is open.
        active: experts that were active, nearest first.
    """

    sample_id: str
    log_likelihood: float
    ranked_first: bool | None
    active: list[str]


def write_likelihood(path: Path, rows: list[Likelihood], header: Header) -> None:
    """Write the rows in the order of the test split."""
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
    """Read (rows, header)."""
    table, header = read_table(path, LIKELIHOOD)
    return [Likelihood(**row) for row in table.to_pylist()], header


def write_likelihood_cache(path: Path, kept: Mapping[str, Likelihoods], fingerprint: str) -> None:
    """Write what was computed by key, sorted by key so that the order of evaluations leaves no trace."""
    import pyarrow as pa

    schema = pa.schema([("key", pa.string()), ("sums", pa.list_(pa.float64())), ("tokens", pa.list_(pa.int32()))])
    rows = [{"key": key, **asdict(kept[key])} for key in sorted(kept)]
    write_table(path, rows, schema, Header.of(LIKELIHOOD_CACHE, backbone=fingerprint))


def read_likelihood_cache(path: Path) -> dict[str, Likelihoods]:
    """Read what was computed by key; empty where nothing was yet."""
    if not path.exists():
        return {}
    table, _ = read_table(path, LIKELIHOOD_CACHE)
    rows = table.to_pylist()
    return {row["key"]: Likelihoods(row["sums"], row["tokens"]) for row in rows}
