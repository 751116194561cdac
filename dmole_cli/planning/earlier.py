"""Seconds of the stages from the cost files of an earlier run, scaled to the work of this one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from dmole_cli.artifacts.costs import read_cost
from dmole_cli.artifacts.headers import header_of
from dmole_cli.artifacts.kinds import D_MOLE, EVALUATION, EXPERT, PROFILE, ROUTER, Kind
from dmole_cli.artifacts.labels import labelled
from dmole_cli.artifacts.run import Run
from dmole_cli.errors import DmoleError
from dmole_cli.planning.durations import Part
from dmole_cli.planning.inputs import PlanInputs
from dmole_cli.planning.work import TaskWork

# Stage -> the count of a cost file that its seconds are proportional to.
UNITS = {
    "profile": "training_tokens",
    "train-router": "feature_passes",
    "train-task": "training_tokens",
    "evaluate": "generations",
}


def earlier_parts(inputs: PlanInputs, work: Sequence[TaskWork], run: Run) -> list[Part]:
    """The parts of all stages; a task without figures of its own gets the mean of the other tasks, per unit of work.

    Args:
        inputs: of the plan.
        work: of the tasks.
        run: the earlier run.

    Raises:
        DmoleError: the run has no figures of a stage, a cost file is damaged, or they are of another backbone.
    """
    found = []
    for stage in UNITS:
        tasks = [item for item in work if item.trains or stage == "evaluate"]
        rates = _rates(inputs, stage, run)
        if tasks and not rates:
            raise DmoleError(
                f"{run.root} has no figures of the stage {stage}",
                "name a run whose stages have all run (--from), or measure: dmole plan --measure",
            )
        for item in tasks:
            rate = rates.get(item.task) or fmean(rates.values())
            amount, shares = _amount(stage, item, _sets(inputs, run, item), inputs)
            found.append(Part(stage, item.task, UNITS[stage], rate * amount, shares=shares))
    return found


def has_figures(inputs: PlanInputs, run: Run) -> bool:
    """Whether a run has figures of all stages."""
    return all(any(run.cost(_cost_name(inputs, stage), "task").parent.glob("*.json")) for stage in UNITS)


def _cost_name(inputs: PlanInputs, stage: str) -> str:
    evaluate = inputs.settings.evaluate
    split = [] if evaluate.split == "test" else [evaluate.split]
    names = {
        "train-task": f"train-task-{D_MOLE}",
        "evaluate": "-".join(["evaluate", *split, labelled(D_MOLE, evaluate)]),
    }
    return names.get(stage, stage)


def _rates(inputs: PlanInputs, stage: str, run: Run) -> dict[str, float]:
    """Task -> seconds per unit of the stage's work."""
    folder, rates = run.cost(_cost_name(inputs, stage), "task").parent, {}
    for path in sorted(folder.glob("*.json")):
        cost = read_cost(path)
        if amount := cost["counts"].get(UNITS[stage]):
            _require_same_backbone(inputs, stage, run, path.stem)
            rates[path.stem] = cost["seconds"] / amount
    return rates


def _require_same_backbone(inputs: PlanInputs, stage: str, run: Run, task: str) -> None:
    kinds: Mapping[str, tuple[Kind, dict[str, str]]] = {
        "profile": (PROFILE, {}),
        "train-router": (ROUTER, {}),
        "train-task": (EXPERT, {"method": D_MOLE}),
        "evaluate": (EVALUATION, _of_evaluation(inputs)),
    }
    kind, values = kinds[stage]
    path = run.path(kind, task=task, **values)
    made = header_of(path, kind)
    if made is not None and made.backbone != inputs.model.fingerprint:
        raise DmoleError(
            f"{path} was made with another backbone, or with its weights in another type: its time says nothing about this one",
            "name a run of this backbone (--from), or measure: dmole plan --measure",
        )


def _of_evaluation(inputs: PlanInputs) -> dict[str, str]:
    evaluate = inputs.settings.evaluate
    return {"method": labelled(D_MOLE, evaluate), "after": "0", "split": evaluate.split}


def _sets(inputs: PlanInputs, run: Run, work: TaskWork) -> float:
    """Distinct sets of active experts per sample in the earlier run, at most one per entry; else the assumption."""
    import pyarrow.parquet as pq

    cost = run.cost(_cost_name(inputs, "evaluate"), work.task)
    path = run.path(EVALUATION, task=work.task, **_of_evaluation(inputs))
    if not cost.exists() or header_of(path, EVALUATION) is None:
        return work.sets
    rows = pq.read_metadata(path).num_rows
    generated: int = read_cost(cost)["counts"].get("generations", 0)
    return min(generated / rows, work.entries) if rows and generated else work.sets


def _amount(stage: str, work: TaskWork, sets: float, inputs: PlanInputs) -> tuple[float, int]:
    """Units of a stage's work for a task, and the number of pieces that are dealt out."""
    amounts: dict[str, tuple[float, int]] = {
        "profile": (work.profile_tokens, len(work.profile_batches)),
        # Not dealt out: a cost file does not say how much of it is the router, which one process trains.
        "train-router": (len(work.train), 1),
        "train-task": (work.train_tokens, work.step_shares),
        "evaluate": (sets * len(work.test), -(-len(work.test) // inputs.settings.evaluate.batch_size)),
    }
    return amounts[stage]
