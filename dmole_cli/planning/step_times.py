"""About how long a step takes, from the cost files of the run."""

from __future__ import annotations

from collections import Counter
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


class StepTimes:
    """Estimates of the time of steps; figures are read once for all steps of a stage.

    Args:
        inspection: of the run directory.
    """

    def __init__(self, inspection: Inspection) -> None:
        self._inspection = inspection
        self._rates: dict[Call, dict[str, float]] = {}
        self._entries = Counter(
            (found.kind, found.label, found.split, found.task)
            for found in inspection.found.values()
            if found.kind in KINDS.values()
        )

    def seconds(self, call: Call, entries: int) -> float | None:
        """Seconds that a call takes: those of its last run, else the mean of the stage's other tasks, by the amount of work.

        Args:
            call: of a stage.
            entries: number of entries of the score matrix that it makes.

        Returns:
            None where the run has no figures of the stage.
        """
        if call.stage in INSTANT:
            return 0.0
        rates = self._rates_of(replace(call, task=""))
        if not rates:
            # A prediction takes about as long, and their time is common where they were computed together.
            return self.seconds(replace(call, stage="evaluate"), entries) if call.stage == "likelihood" else None
        rate = rates.get(call.task)
        amount = self._amount(call, call.task) * (entries if call.stage in KINDS else 1)
        return round((fmean(rates.values()) if rate is None else rate) * amount, 3)

    def _rates_of(self, call: Call) -> dict[str, float]:
        """Task -> seconds per unit of work, of the tasks whose costs are known; `call` without a task."""
        if call not in self._rates:
            name, known = call.stage, set(self._inspection.tasks)
            if call.stage == "train-task":
                name = f"train-task-{call.label}"
                known = set(self._inspection.rules(call.label).trained_tasks(self._inspection.settings.tasks))
            elif call.stage in KINDS:
                name = "-".join([call.stage, *([] if call.split == "test" else [call.split]), call.label])
            paths = sorted(self._inspection.run.cost(name, "task").parent.glob("*.json"))
            found = {path.stem: self._rate(call, path) for path in paths if path.stem in known}
            self._rates[call] = {task: rate for task, rate in found.items() if rate is not None}
        return self._rates[call]

    def _rate(self, call: Call, path: Path) -> float | None:
        """Seconds per unit of work that a cost file states; None for a task without data, and for a damaged file."""
        task = path.stem
        try:
            cost, amount = read_cost(path), self._amount(call, task)
        except DmoleError:
            return None
        if call.stage in KINDS:
            # The cost is that of all evaluations so far, also of those that were replaced since.
            amount *= self._entries[KINDS[call.stage], call.label, call.split, task]
            amount *= max(1.0, cost["counts"].get("generations", 0) / amount) if amount else 1
        return float(cost["seconds"]) / amount if amount else None

    def _amount(self, call: Call, task: str) -> float:
        """Units of work for a task: rows of the split, those of a training as often as it visits them."""
        settings, data = self._inspection.settings, self._inspection.data
        if call.stage != "train-task":
            return len(data.samples(task, call.split or "train"))
        rules = self._inspection.rules(call.label)
        options = rules.option_values(settings)
        shares = rules.data_shares(settings.tasks, task, options)
        cards = {name: data.card(name) for name in shares}
        rows, own = row_counts(task, shares, data=data), rules.protocol == "joint"
        recipe = recipe_for(task, cards, chosen=settings.train, options=options, rows=rows, own_epochs=own)
        return sum(recipe.epochs[name] * recipe.repeats[name] * count for name, count in rows.items())
