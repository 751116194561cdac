"""Which experts a task's samples activate after every stage, and which earlier ones in training (D-MoLE, Figure 7)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from dmole_cli.artifacts.headers import header_of
from dmole_cli.artifacts.kinds import EXPERT
from dmole_cli.figures._naming import named, titled
from dmole_cli.figures._panels import HeatMaps, Panel, arrange, draw_panels
from dmole_cli.figures.base import Columns, Experiment, Figure, Source

if TYPE_CHECKING:
    import pyarrow as pa
    from matplotlib.figure import Figure as Canvas

READING = (
    "Each heat map is one task's samples: a row is a stage, a column an expert; routing is stable where the task's own column "
    "stays bright below the stage that trained it."
)
DEFINITION = (
    "Percent of the task's {split} samples for which an expert is active after the first s tasks: its router's reconstruction "
    "loss is below the threshold, and one of the two lowest. A sample may activate two experts, so a row may exceed 100 %; "
    "'none': samples that the pretrained backbone answers alone."
)
READING_TRAINING = "A row is the task that trained; a bright column is an earlier expert that most of its samples used."
DEFINITION_TRAINING = (
    "Percent of the visits to the training samples of a task in which the expert of an earlier task was active beside the one "
    "that trained: its router's loss is below the threshold and the lowest of the earlier ones (or the batch voted for it, with "
    'training_vote = "batch"). The earlier expert is frozen.'
)
NONE = "none"
LEGIBLE = 0.4  # inches of a column with texts
FEW = 8  # tasks whose names are written at rows and columns; more have numbers there


@dataclass(frozen=True)
class Activation:
    """Which experts the samples of one entry of the score matrix activate.

    Attributes:
        after: number of trained tasks.
        task: of the samples.
        shares: expert -> share (0..1) of the samples that activate it; `none` for samples without an active expert.
    """

    after: int
    task: str
    shares: Mapping[str, float]


def figures(source: Source) -> Iterator[Figure]:
    """For each example with routers: activation by stage, and transfer experts in training."""
    for one in source.examples:
        if not one.kind.uses_routers:
            continue
        if found := list(activations(one)):
            yield _stages(one, found)
        trained = transfer_shares(one)
        if any(trained.values()):
            yield _training(one, trained)


def activations(one: Experiment) -> Iterator[Activation]:
    """What was evaluated with at least one router, by task, then by stage."""
    for task in (*one.tasks, *one.report.unseen):
        for after in range(1, len(one.tasks) + 1):
            if (table := one.answers(after, task, ["active"])) is not None:
                yield Activation(after, task, shares_of(table))


def shares_of(table: pa.Table) -> dict[str, float]:
    """Expert -> share of the rows whose column `active` has it; `none` for rows without one."""
    import pyarrow.compute as pc

    column = table["active"]
    counts = Counter(pc.list_flatten(column).to_pylist())
    counts[NONE] = pc.sum(pc.equal(pc.list_value_length(column), 0)).as_py() or 0
    return {name: count / len(column) for name, count in counts.items()}


def transfer_shares(one: Experiment) -> dict[str, dict[str, float]]:
    """Task -> earlier task -> share of the training samples that activated its expert; without experts that do not record it.

    Raises:
        ArtifactError: an expert is damaged.
    """
    found = {}
    for task in one.tasks:
        header = header_of(one.run.expert(task, one.method), EXPERT)
        if header is not None and isinstance(shares := header.facts.get("transfer_shares"), dict):
            found[task] = {name: float(share) for name, share in shares.items()}
    return found


def numbered(tasks: Sequence[str]) -> list[str]:
    """Labels of the tasks at rows and columns: names, or numbers where there are many."""
    return [f"{i} {task}" if len(tasks) <= FEW else str(i) for i, task in enumerate(tasks, start=1)]


def _stages(one: Experiment, found: Sequence[Activation]) -> Figure:
    shares = {(entry.task, entry.after): entry.shares for entry in found}
    stages, names = range(1, len(one.tasks) + 1), [*one.tasks, NONE]
    labels = numbered(one.tasks)
    panels = []
    for task in dict.fromkeys(entry.task for entry in found):
        values = [[_percent(shares.get((task, after)), name, after, one.tasks) for name in names] for after in stages]
        title = f"{one.tasks.index(task) + 1} {task}" if task in one.tasks else f"{task} (unseen)"
        panels.append(Panel(title, values, labels, [*labels, NONE]))
    texts = len(one.tasks) <= FEW
    placed = arrange(panels, cell=(0.46, 0.28) if texts else (0.2, 0.12), least=LEGIBLE if texts else 0.09, every=texts)
    numbers: Columns = {
        "task": [entry.task for entry in found for _ in names],
        "after": [entry.after for entry in found for _ in names],
        "expert": [name for _ in found for name in names],
        "percent": [
            _percent(entry.shares, name, entry.after, one.tasks, missing=None) for entry in found for name in names
        ],
    }
    return Figure(
        name=named(one, "activation-stages"),
        title=titled(one, "Active experts after every stage"),
        reading=READING,
        definition=DEFINITION.format(split=one.split),
        numbers=numbers,
        alternative=f"Heat maps of {len(panels)} tasks: stages by experts. {_last(one, shares)}",
        draw=partial(_draw, placed=placed, beside="after training", below="active expert", texts=texts),
        size=placed.size,
        note="" if texts else "Numbers at rows and columns are the tasks' positions in the stream, as in the titles.",
    )


def _percent(
    shares: Mapping[str, float] | None, name: str, after: int, tasks: Sequence[str], missing: float | None = math.nan
) -> float | None:
    """Percent of samples with an active expert; missing where nothing was evaluated, or the expert did not exist yet."""
    if shares is None or name in tasks[after:]:
        return missing
    return round(100 * shares.get(name, 0.0), 2)


def _last(one: Experiment, shares: Mapping[tuple[str, int], Mapping[str, float]]) -> str:
    """The shares of own experts after the last stage, in words."""
    after = len(one.tasks)
    last = {task: shares[task, after] for task in one.tasks if (task, after) in shares}
    own = [f"{task} {100 * found.get(task, 0):.0f} %" for task, found in last.items()]
    return f"Samples with their own task's expert after the last stage: {', '.join(own)}." if own else ""


def _training(one: Experiment, trained: Mapping[str, Mapping[str, float]]) -> Figure:
    rows, columns = [task for task in trained if trained[task]], list(one.tasks[:-1])
    labels = dict(zip(one.tasks, numbered(one.tasks), strict=True))
    values = [[100 * trained[row][name] if name in trained[row] else math.nan for name in columns] for row in rows]
    names = [f"{one.tasks.index(row) + 1} {row}" for row in rows]
    panel = Panel("", values, names, [labels[name] for name in columns])
    texts = len(columns) <= 20
    placed = arrange([panel], cell=(1.1, 0.32), least=LEGIBLE, every=True)
    pairs = [(row, name, round(100 * trained[row][name], 2)) for row in rows for name in trained[row]]
    most = max(pairs, key=lambda pair: pair[2])
    return Figure(
        name=named(one, "activation-training"),
        title=titled(one, "Earlier experts that were active in training"),
        reading=READING_TRAINING,
        definition=DEFINITION_TRAINING,
        numbers=dict(zip(("trained", "earlier expert", "percent"), map(list, zip(*pairs, strict=True)), strict=True)),
        alternative=f"Heat map of {len(rows)} task(s) by earlier experts. Most: {most[1]} in {most[2]:.0f} % of the visits to "
        f"samples of {most[0]}.",
        draw=partial(_draw, placed=placed, beside="trained task", below="earlier expert", texts=texts, every=True),
        size=placed.size,
    )


def _draw(canvas: Canvas, *, placed: HeatMaps, beside: str, below: str, texts: bool, every: bool | None = None) -> None:
    draw_panels(
        canvas, placed, below=below, beside=beside, scale="% of samples", text=".0f" if texts else None,
        every=texts if every is None else every, vmin=0, vmax=100,
    )  # fmt: skip
