"""Results for other programs: every number in long form, the table of a paper, and predictions for a spreadsheet.

A cell of a CSV file that a spreadsheet would take for a formula begins with an apostrophe, as OWASP advises
(https://owasp.org/www-community/attacks/CSV_Injection); other programs remove it from texts that begin with it and one of
`=`, `+`, `-`, `@`, a tab, a carriage return or a line feed. Files appear under their name when they are complete.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from dmole_cli.artifacts.files import replacing
from dmole_cli.errors import DmoleError
from dmole_cli.reports.collect import MEANS, QUANTITIES
from dmole_cli.reports.continual import Value
from dmole_cli.reports.costs import seconds_by_stage
from dmole_cli.reports.evaluations import read_likelihoods
from dmole_cli.reports.experiments import Experiment, Source
from dmole_cli.reports.stream import of_stream

if TYPE_CHECKING:
    import pyarrow as pa

# How a formula begins in a spreadsheet; the full-width forms do so in East Asian ones.
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
LONG = ("method", "order", "seed", "task", "after", "quantity", "value")
# Values of the column `task` for means over tasks, and for a whole run.
MEAN, UNCAPPED, BOUNDED, ALL = "mean", "mean uncapped", "mean of bounded metrics", "all"
# Columns of predictions; in CSV, the entries of lists are separated by `SEPARATOR`.
PREDICTIONS = (
    "method", "order", "seed", "after", "task", "sample_id", "images", "question", "references", "prediction", "score", "active",
    "losses",
)  # fmt: skip
SEPARATOR = " | "
SUFFIXES = (".csv", ".parquet")


def as_cell(value: Any) -> Any:
    """A cell of a CSV file: texts that a spreadsheet would take for formulas begin with an apostrophe; None is empty."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Rows as CSV (RFC 4180, but lines end with a line feed); texts are quoted, numbers are not rounded, None is empty."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    writer.writerow(map(as_cell, columns))
    writer.writerows([as_cell(value) for value in row] for row in rows)
    return file.getvalue()


# ------------------------------------------------------------------------------------------------ long form

# (task, after, quantity, value); `after` is None for what belongs to no stage.
Long = tuple[str, int | None, str, Value]


def long_form(source: Source) -> str:
    """Every number of all experiments as CSV with the columns `LONG`.

    Raises:
        DmoleError: an artifact is damaged.
    """
    return csv_text(LONG, long_rows(source))


def long_rows(source: Source) -> Iterator[tuple[Any, ...]]:
    """A row per number, not rounded: scores in points, shares in 0..1; a missing number has no row."""
    for one in source.experiments:
        for task, after, quantity, value in _numbers(one):
            if value is not None:
                yield (one.name, one.order, one.seed, task, after, quantity, value)


def _numbers(one: Experiment) -> Iterator[Long]:
    report, last = one.report, len(one.tasks)
    for after, row in enumerate(report.matrix):
        yield from ((task, after, "score", value) for task, value in zip(one.tasks, row, strict=True))
    for name in QUANTITIES:
        yield from ((task, None, name, value) for task, value in zip(one.tasks, report.quantities[name], strict=True))
    for kind, means in ((MEAN, report.mean), (UNCAPPED, report.mean_uncapped), (BOUNDED, report.mean_of_bounded)):
        yield from ((kind, None, name, means[name]) for name in MEANS)
    for task, metrics in report.further.items():
        yield from (
            (task, None, f"{name} {key}", values[key]) for name, values in metrics.items() for key in QUANTITIES
        )
    yield from ((task, last, "routed_right", share) for task, share in report.routing.items())
    for task, values in report.unseen.items():
        stages = {"zero_shot": (0, "score"), "last": (last, "score"), "no_expert": (last, "no_expert")}
        yield from ((task, *stages[name], value) for name, value in values.items())
    likelihoods, _ = of_stream(one.method, read_likelihoods(one.run, one.method, one.split), one.tasks)
    for (after, task), likely in likelihoods.items():
        yield task, after, "log_likelihood", likely.log_likelihood
        yield task, after, "ranked_first", likely.ranked_first
    for name in ("trainable_parameters", "stored_parameters"):
        yield ALL, None, name, getattr(report, name)
    seconds = seconds_by_stage(one.run, one.method, split=one.split)
    yield from ((ALL, None, f"{stage} seconds", value) for stage, value in seconds.items())


# ------------------------------------------------------------------------------------------------ predictions


def write_predictions(path: Path, source: Source) -> int:
    """Write the prediction of every sample as a table; returns the number of rows.

    One evaluation is in memory at a time. Lists are lists in Parquet; in CSV their entries are separated by `SEPARATOR`.

    Args:
        path: ends with `.csv` or `.parquet`.
        source: whose experiments; the order of rows is that of methods, orders and seeds, stages, tasks and the split.

    Raises:
        DmoleError: another ending, a damaged evaluation, or the file cannot be written.
    """
    if path.suffix not in SUFFIXES:
        raise DmoleError(
            f"{path}: unknown format {path.suffix or '(none)'}", f"end the name with {' or '.join(SUFFIXES)}"
        )
    with replacing(path) as file:
        writer = _csv_writer(file) if path.suffix == ".csv" else _parquet_writer(file)
        rows = 0
        with writer:
            for table in _tables(source):
                writer.write_table(_as_texts(table) if path.suffix == ".csv" else table)
                rows += table.num_rows
    return rows


def _tables(source: Source) -> Iterator[pa.Table]:
    """The predictions of each evaluation that belongs to an experiment."""
    import pyarrow as pa

    columns = PREDICTIONS[5:]
    for one in source.experiments:
        tasks = [*one.tasks, *one.report.unseen]
        left_out = {(entry.stage, entry.task) for entry in one.report.left_out}
        for after in range(len(one.tasks) + 1):
            for task in tasks:
                if (after, task) in left_out or (table := one.answers(after, task, columns)) is None:
                    continue
                known = {"method": one.name, "order": one.order, "seed": one.seed, "after": after, "task": task}
                constant = [pa.repeat(value, table.num_rows) for value in known.values()]
                yield pa.table([*constant, *table.columns], schema=_schema())


def _schema() -> pa.Schema:
    import pyarrow as pa

    kinds = dict.fromkeys(("seed", "after"), pa.int64()) | {"score": pa.float64(), "losses": pa.list_(pa.float64())}
    kinds |= dict.fromkeys(("images", "references", "active"), pa.list_(pa.string()))
    return pa.schema([(name, kinds.get(name, pa.string())) for name in PREDICTIONS])


def _parquet_writer(file: IO[bytes]) -> Any:
    import pyarrow.parquet as pq

    return pq.ParquetWriter(file, _schema(), compression="zstd")


def _csv_writer(file: IO[bytes]) -> Any:
    import pyarrow as pa
    import pyarrow.csv

    kinds = [(field.name, pa.string() if pa.types.is_list(field.type) else field.type) for field in _schema()]
    return pyarrow.csv.CSVWriter(file, pa.schema(kinds))


def _as_texts(table: pa.Table) -> pa.Table:
    """The table with lists joined, and texts that are safe in a spreadsheet."""
    import pyarrow as pa
    import pyarrow.compute as pc

    columns = []
    for column in table.columns:
        if pa.types.is_list(column.type):
            column = pc.binary_join(column.cast(pa.list_(pa.string())), SEPARATOR)
        if pa.types.is_string(column.type):
            is_formula = pc.is_in(pc.utf8_slice_codeunits(column, 0, 1), value_set=pa.array(FORMULA))
            column = pc.if_else(is_formula, pc.binary_join_element_wise("'", column, ""), column)
        columns.append(column)
    return pa.table(columns, names=table.column_names)
