"""`training/<method>/<task>.parquet`: the figures of every training step.

Nothing is made from them. Unlike other artifacts they differ between runs, in the column `seconds`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dmole_cli.artifacts.kinds import TRAINING_LOG
from dmole_cli.artifacts.provenance import Header
from dmole_cli.artifacts.tables import read_table, write_table


@dataclass(frozen=True)
class StepFigures:
    """Figures of one training step.

    Attributes:
        step: its number, from 1.
        loss: mean cross-entropy over the answer tokens of the step.
        penalty: the term that the method added to it.
        learning_rate: of the step.
        gradient_norm: before clipping; infinite where float16 overflowed and the step was skipped.
        tokens: tokens of the samples, without padding.
        seconds: time since the previous step ended, waiting for the samples included.
        answers: answer tokens.
        truncated: samples whose question was truncated, and that no earlier step had visited.
    """

    step: int
    loss: float
    penalty: float
    learning_rate: float
    gradient_norm: float
    tokens: int
    seconds: float
    answers: int = 0
    truncated: int = 0


COLUMNS = tuple(TRAINING_LOG.columns)


def write_training_log(path: Path, figures: Sequence[StepFigures], header: Header) -> None:
    """Write the figures of all steps, with the provenance of the expert."""
    import pyarrow as pa

    schema = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in TRAINING_LOG.columns.items()])
    rows = [{name: getattr(row, name) for name in COLUMNS} for row in figures]
    write_table(path, rows, schema, header.of_kind(TRAINING_LOG))


def read_training_log(path: Path) -> list[StepFigures]:
    """Read the figures of all steps.

    Raises:
        ArtifactError: the file is missing, damaged or of another kind.
    """
    table, _ = read_table(path, TRAINING_LOG)
    return [StepFigures(**row) for row in table.select(COLUMNS).to_pylist()]
