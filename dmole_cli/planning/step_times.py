"""About how long a step takes, from the cost files of the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from dmole_cli.artifacts.costs import read_cost
from dmole_cli.artifacts.kinds import EVALUATION, LIKELIHOOD
from dmole_cli.errors import DmoleError
from dmole_cli.planning.nodes import Call
from dmole_cli.training.samples import recipe_for, row_counts
from dmole_cli.verification.inspection import Inspection

# Stages that take no time worth an estimate: they read a file and compute for moments, and write no cost.
INSTANT = ("allocate", "rescore")
# Stages whose work is a number of entries of the score matrix.
KINDS = {"evaluate": EVALUATION, "likelihood": LIKELIHOOD}


def seconds_of(inspection: Inspection, call: Call, after: Sequence[int]) -> float | None:
    """Seconds that a call takes: those of its last run, else the mean of the stage's other tasks, by the amount of work.

    Args:
        inspection: of the run directory.
        call: of a stage.
        after: entries of the score matrix that it makes.

    Returns:
        None where the run has no figures of the stage.
    """
    if call.stage in INSTANT:
        return 0.0
    rates = {
        path.stem: rate for path in _costs(inspection, call) if (rate := _rate(inspection, call, path)) is not None
    }
    if not rates:
        # A prediction takes about as long, and their time is common where they were computed together.
        return seconds_of(inspection, replace(call, stage="evaluate"), after) if call.stage == "likelihood" else None
    rate = rates.get(call.task)
    amount = _amount(inspection, call, call.task) * (len(after) if call.stage in KINDS else 1)
    return round((fmean(rates.values()) if rate is None else rate) * amount, 3)


def _costs(inspection: Inspection, call: Call) -> list[Path]:
    name = call.stage
    if call.stage == "train-task":
        name = f"train-task-{call.label}"
    elif call.stage in KINDS:
        name = "-".join([call.stage, *([] if call.split == "test" else [call.split]), call.label])
    return sorted(inspection.run.cost(name, call.task).parent.glob("*.json"))


def _rate(inspection: Inspection, call: Call, path: Path) -> float | None:
    """Seconds per unit of work that a cost file states; None for a task without data, and for a damaged file."""
    task = path.stem
    try:
        cost = read_cost(path)
        amount = _amount(inspection, call, task) if task in inspection.tasks else 0
    except DmoleError:
        return None
    if call.stage in KINDS:
        # The cost is that of all evaluations so far, also of those that were replaced since.
        entries = sum(
            found.kind is KINDS[call.stage] and (found.task, found.label, found.split) == (task, call.label, call.split)
            for found in inspection.found.values()
        )
        answered = cost["counts"].get("generations", 0)
        repeated = max(1.0, answered / (amount * entries)) if amount and entries else 1.0
        return float(cost["seconds"]) / (amount * entries * repeated) if amount and entries else None
    return float(cost["seconds"]) / amount if amount else None


def _amount(inspection: Inspection, call: Call, task: str) -> int:
    """Units of work for a task: rows of the split, those of a training as often as it visits them."""
    settings, data = inspection.settings, inspection.data
    if call.stage != "train-task":
        return len(data.samples(task, call.split or "train"))
    rules = inspection.rules(call.label)
    options = rules.option_values(settings)
    shares = rules.data_shares(settings.tasks, task, options)
    cards = {name: data.card(name) for name in shares}
    rows, own = row_counts(task, shares, data=data), rules.protocol == "joint"
    recipe = recipe_for(task, cards, chosen=settings.train, options=options, rows=rows, own_epochs=own)
    return sum(recipe.epochs[name] * recipe.repeats[name] * count for name, count in rows.items())
