"""Finds what a page is made from: the methods of a run directory, or the experiments of a comparison (pipelines/compare)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from dmole_cli.artifacts.kinds import D_MOLE
from dmole_cli.artifacts.run import Run
from dmole_cli.data.tasks import Tasks
from dmole_cli.errors import DmoleError
from dmole_cli.figures.base import Experiment, Source
from dmole_cli.reports.collect import collect
from dmole_cli.reports.evaluations import methods_on_disk
from dmole_cli.settings.documents import read_json
from dmole_cli.settings.model import Settings
from dmole_cli.settings.reading import read_record
from dmole_cli.settings.record import FILE as RECORD
from dmole_cli.settings.record import located

PLAN = "plan.json"  # in the folder of a comparison
MAIN = "main"  # the group of experiments that are compared; the others are studies


class Planned(BaseModel):
    """An experiment as `plan.json` has it."""

    model_config = ConfigDict(extra="ignore")
    label: str
    order: str
    seed: int
    group: str = MAIN
    router: list[str] = []
    allocate: list[str] = []
    train: list[str] = []
    result: str = ""


class Plan(BaseModel):
    """`plan.json` of a comparison."""

    model_config = ConfigDict(extra="ignore")
    orders: dict[str, list[str]]
    cells: list[Planned]
    split: str = "test"


def is_comparison(folder: Path) -> bool:
    """Whether a folder is that of a comparison."""
    return (folder / PLAN).is_file()


def source_of_run(
    run: Run,
    settings: Settings,
    *,
    data: Tasks | None,
    methods: Sequence[str] | None = None,
    rescored: Sequence[str] = (),
) -> Source:
    """The methods that were evaluated in a run directory; the main method, without scores, if there is none.

    Args:
        run: the run directory.
        settings: of the run: stream, split and seed.
        data: the tasks, for their images.
        methods: those to show; all by default.
        rescored: metrics whose scores replace the original ones.

    Raises:
        DmoleError: an artifact is damaged or stale.
    """
    split = settings.evaluate.split
    if not methods and not methods_on_disk(run, split):
        methods = [D_MOLE]
    reports = collect(run, tasks=settings.tasks, methods=methods, split=split, rescored=rescored)
    experiments = [
        Experiment(report.method, "", settings.seed, run, report, split, rescored=rescored) for report in reports
    ]
    return Source(run.root.resolve().name, experiments, settings.seed, data)


def source_of_comparison(folder: Path) -> Source:
    """The finished experiments of a comparison's main table.

    Raises:
        DmoleError: `plan.json` is damaged, an artifact is damaged or stale, or no experiment has finished.
    """
    plan = read_plan(folder / PLAN)
    experiments = list(_experiments(folder, plan))
    if not experiments:
        raise DmoleError(f"no experiment of {folder} has finished", f"run: python pipelines/compare/run.py {folder}")
    return Source(folder.resolve().name, experiments, 0, _data_of(experiments[0].run))


def read_plan(path: Path) -> Plan:
    """Read `plan.json` of a comparison.

    Raises:
        DmoleError: the file is missing or damaged.
    """
    try:
        return Plan.model_validate(read_json(path))
    except (OSError, ValueError, ValidationError) as error:
        message = f"{path} is not the plan of a comparison: {str(error).splitlines()[0]}"
        raise DmoleError(message, "run pipelines/compare/run.py in this folder again, which writes it") from error


def _experiments(folder: Path, plan: Plan) -> Iterator[Experiment]:
    for planned in plan.cells:
        result = folder / planned.result
        if planned.group != MAIN or not planned.result or not result.is_file():
            continue
        run = run_of(folder, planned)
        label = result.parts[-3]
        (report,) = collect(run, tasks=plan.orders[planned.order], methods=[label], split=plan.split)
        yield Experiment(label, planned.order, planned.seed, run, report, plan.split, planned.label)


def run_of(folder: Path, planned: Planned) -> Run:
    """The run directory of an experiment: `folder` and `shared` of an experiment of pipelines/compare/_plan.py."""
    usual = folder / planned.order / f"seed-{planned.seed}"
    apart = planned.router or planned.allocate or planned.train
    root = usual / "variants" / planned.label if apart else usual
    return Run(root, folder / (f"shared-{planned.label}" if planned.router else "shared"))


def _data_of(run: Run) -> Tasks | None:
    """The tasks of a run, from the settings that it has recorded; None where the record or the data are missing or damaged."""
    record: Mapping[str, Any] = read_record(run.root / RECORD, Settings)
    if not record:
        return None
    try:
        return Tasks.of(Settings.model_validate(located(record, run.root)), run)
    except (DmoleError, ValueError):
        return None  # images of cases are then placeholders
