"""`evaluations/<method>/<after>/<task>.parquet`: a row per evaluated sample."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from dmole_cli.artifacts.errors import DamagedArtifact
from dmole_cli.artifacts.kinds import EVALUATION
from dmole_cli.artifacts.provenance import Header
from dmole_cli.artifacts.tables import read_table, write_table

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Answer:
    """One evaluated sample with its prediction.

    Attributes:
        sample_id: of the evaluated split.
        question: the instruction with the prompt template applied.
        prediction: the generated text.
        references: accepted answers.
        score: the metric's value for this sample (0..1; CIDEr 0..10).
        active: active experts, lowest reconstruction loss first.
        losses: reconstruction loss under each router, in the order of the stream; of weighted experts, the distance to each task.
        details: JSON of what metrics need beyond the references, so that a stored file can be scored again.
        images: the sample's images, in their order: paths as its record has them, or names of other sources.
    """

    sample_id: str
    question: str
    prediction: str
    references: list[str]
    score: float
    active: list[str]
    losses: list[float]
    details: str
    images: list[str] = field(default_factory=list)


def write_evaluation(path: Path, rows: list[Answer], header: Header) -> None:
    """Write the rows in the order of the split."""
    import pyarrow as pa

    text, real = pa.string(), pa.float64()
    schema = pa.schema(
        [
            ("sample_id", text),
            ("question", text),
            ("prediction", text),
            ("references", pa.list_(text)),
            ("score", real),
            ("active", pa.list_(text)),
            ("losses", pa.list_(real)),
            ("details", text),
            ("images", pa.list_(text)),
        ]
    )
    write_table(path, [asdict(row) for row in rows], schema, header)


def read_evaluation(path: Path) -> tuple[list[Answer], Header]:
    """Read (rows, header).

    Raises:
        ArtifactError: the file is missing, damaged or of another kind, or a score or a loss is not finite.
    """
    table, header = read_answers(path)
    return [Answer(**{name: row[name] for name in EVALUATION.columns}) for row in table.to_pylist()], header


def read_answers(path: Path) -> tuple[pa.Table, Header]:
    """Read (table, header): the columns of `Answer`, for reports that compute with a few of them.

    Raises:
        ArtifactError: as for `read_evaluation`.
    """
    import pyarrow.compute as pc

    table, header = read_table(path, EVALUATION)
    for numbers in (table.column("score"), pc.list_flatten(table.column("losses"))):
        if numbers.null_count or not pc.all(pc.is_finite(numbers), min_count=0).as_py():
            raise DamagedArtifact(path, f"{path} is damaged: a score or a loss is not finite")
    return table, header
