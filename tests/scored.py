"""Runs with made-up scores, written by the real writers."""

from collections.abc import Sequence
from pathlib import Path

from dmole_cli.artifacts.evaluation import Answer, write_evaluation
from dmole_cli.artifacts.kinds import EVALUATION
from dmole_cli.artifacts.provenance import Header
from dmole_cli.artifacts.run import Run
from dmole_cli.reports.collect import collect
from dmole_cli.reports.evaluations import method_of
from dmole_cli.reports.experiments import Experiment, Source

TASKS = ("shapes", "colours")


def evaluation(
    run: Run,
    method: str,
    after: int,
    task: str,
    scores: Sequence[float],
    *,
    predictions: Sequence[str] = (),
    own_loss: Sequence[float] = (),
    ids: Sequence[int] = (),
    tasks: Sequence[str] = TASKS,
    metric: str = "exact_match",
) -> None:
    """Write an evaluation; where `own_loss` is given, the own expert is active below a loss of 0.5, and other losses are 1."""
    seen = list(tasks[:after])
    rows = []
    for index, score in enumerate(scores):
        loss = own_loss[index] if own_loss else 0.0
        rows.append(
            Answer(
                sample_id=f"s{ids[index] if ids else index}",
                question=f"question {index}?",
                prediction=predictions[index] if predictions else ("yes" if score else "no"),
                references=["yes", "Yes"],
                score=score,
                active=[task] if own_loss and task in seen and loss < 0.5 else [],
                losses=[loss if name == task else 1.0 for name in seen] if own_loss else [],
                details="{}",
                images=[f"{index}.png"],
            )
        )
    settings = {"metric": metric, "learned": method_of(method).learned(tasks, after, task)}
    write_evaluation(run.evaluation(method, after, task), rows, Header.of(EVALUATION, backbone="b", settings=settings))


def experiments(run: Run, *, order: str = "", seed: int = 0, tasks: Sequence[str] = TASKS) -> list[Experiment]:
    return [Experiment(report.method, order, seed, run, report) for report in collect(run, tasks=tasks)]


def fill(run: Run, *, better: int = 8) -> Run:
    """Four methods with ten samples a task; `better` of the main method's samples stay right."""

    def right(count: int) -> list[float]:
        return [1.0] * count + [0.0] * (10 - count)

    for task in TASKS:
        evaluation(run, "zero-shot", 0, task, right(1))
    evaluation(run, "finetune", 1, "shapes", right(9))
    evaluation(run, "finetune", 2, "colours", right(10))
    evaluation(run, "joint", 2, "shapes", right(7))
    evaluation(run, "joint", 2, "colours", right(7))
    for method, last in (("seq-ft", 3), ("d-mole", better)):
        evaluation(run, method, 1, "shapes", right(9))
        evaluation(run, method, 1, "colours", right(2))
        evaluation(run, method, 2, "shapes", right(last))
        evaluation(run, method, 2, "colours", right(9))
    return run


def two_seeds(folder: Path) -> Source:
    """Two seeds, whose main method keeps 80 and 60 points of the first task."""
    found = []
    for seed, better in ((0, 8), (1, 6)):
        found += experiments(fill(Run(folder / f"run-{seed}"), better=better), order="A", seed=seed)
    return Source("comparison", found)
