"""Stage `plan`: sites and parameters per budget, memory, bytes on disk and time; needs neither weights nor a profile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from dmole_cli.allocation.placement import MODALITIES
from dmole_cli.artifacts.run import Run
from dmole_cli.backbones.backbone import Backbone
from dmole_cli.backbones.files import resolve
from dmole_cli.backbones.lazy_model import LazyModel
from dmole_cli.backbones.meta_model import meta_model
from dmole_cli.backbones.processors import load_processor
from dmole_cli.backbones.reach import find_candidates
from dmole_cli.data.tasks import Tasks
from dmole_cli.errors import DmoleError, first_line
from dmole_cli.planning.disk import BYTES_PER_PARAMETER, disk_rows
from dmole_cli.planning.durations import Start, seconds_of_process, time_of
from dmole_cli.planning.earlier import earlier_parts, has_figures
from dmole_cli.planning.inputs import PlanInputs
from dmole_cli.planning.measuring import measured_parts
from dmole_cli.planning.memory import memory_rows
from dmole_cli.planning.work import TaskWork, reading_parts, stream_work
from dmole_cli.profiling.estimates import FRAGMENTATION, library_bytes
from dmole_cli.profiling.memory import as_fake_tensors
from dmole_cli.progress import Track, quiet
from dmole_cli.settings.model import Settings

BUDGETS = ("0.5%", "1%", "2%", "5%", "sites:25%", "sites:50%", "sites:100%")
ASSUMPTIONS = (
    "batches are the longest samples of the task's training split, at most --max-length, padded to the longest of them",
    "experts sit at the sites of the task's allocation; without one, at the first sites that the budget holds, which keeps "
    "the most activations; at all sites where the budget holds no expert",
    "no transfer expert and no penalty; a worker process that prepares batches has its own memory",
    f"process = libraries as loaded here + weights + tensors + {FRAGMENTATION} x tensors without checkpointing, for heap "
    "fragmentation on a CPU, + prepared samples that training keeps for its next epoch (--sample-cache); on a GPU: weights + "
    "tensors",
)

TIME_ASSUMPTIONS = (
    "one command per stage for all tasks, method d-mole, all entries of the score matrix",
    "a prediction is made without experts and, for tasks of the stream, again with the task's own expert, whose answers are as "
    "long as the references; figures of an earlier run say how many predictions there were",
    "a measured router trains for the maximum number of epochs; few samples have a transfer expert",
    "the same machine with the same other work; of several processes, each has a device of its own and computes as fast as one",
    "batches are dealt out; a step of training is divided only where it has several micro-batches; a router's training and "
    "scores are not divided, and nothing of train-router if the figures are those of an earlier run, which do not separate them",
)


@dataclass(frozen=True)
class Scope:
    """What bytes and time are planned of, and where the time is known from.

    Attributes:
        stream: tasks whose artifacts and time are planned; by default those whose memory is.
        processes: processes that share the work of a command.
        measure: load the backbone, and measure the stages' work for a minute.
        earlier: run whose figures of time are used; None for the run itself, if it has some.
        begun: seconds of this process when the command began, by `seconds_of_process`; None for those at the call.
    """

    stream: Sequence[str] = ()
    processes: int = 1
    measure: bool = False
    earlier: Run | None = None
    begun: tuple[float, float] | None = None


def plan(
    tasks: Sequence[str],
    *,
    settings: Settings,
    data: Tasks,
    model: LazyModel,
    run: Run,
    of: Scope = Scope(),
    track: Track = quiet,
) -> dict[str, Any]:
    """State sites, parameters and bytes per budget, the memory of profiling and training, and bytes and time of a stream.

    Args:
        tasks: tasks whose longest samples determine the memory.
        settings: budget, batch sizes, data type and precision.
        data: the tasks.
        model: the backbone; its weights are loaded only to measure.
        run: the run directory, for allocations and figures that exist.
        of: what bytes and time are planned of.
        track: shows the progress of the measurement.

    Raises:
        DmoleError: the backbone has no configuration or no processor, a task's data cannot be read, or the named run has no
            figures of time.
    """
    light = of.begun or seconds_of_process()
    empty = meta_model(model.name, attention=settings.attention)
    heavy = seconds_of_process()
    sites = find_candidates(empty, settings.profile.sites)
    inputs = PlanInputs(settings, data, model, run, sites, sum(p.numel() for p in empty.parameters()))
    libraries = library_bytes()
    backbone = _without_weights(inputs, empty)
    work = stream_work(inputs, of.stream or tasks, backbone.inputs)
    budgets = dict.fromkeys((settings.allocate.budget, *BUDGETS))
    found = {
        "model": type(empty).__name__,
        "parameters": inputs.parameters,
        "pattern": settings.profile.sites,
        "sites": {name: sum(site.modality == name for site in sites) for name in MODALITIES},
        "rank": settings.allocate.rank,
        "budgets": [_budget(inputs, text) for text in budgets],
        "work": [item.as_dict() for item in work],
        "disk": disk_rows(inputs, work),
    }
    # Before the memory, whose FakeTensors need further libraries.
    found["time"] = _time(inputs, work, Start(light, heavy), of, track)
    found["memory"] = memory_rows(inputs, tasks, backbone, libraries=libraries)
    return found | {"assumes": [*ASSUMPTIONS, *(TIME_ASSUMPTIONS if found["time"] else ())]}


def _time(inputs: PlanInputs, work: Sequence[TaskWork], start: Start, of: Scope, track: Track) -> dict[str, Any] | None:
    """Seconds per stage and in all; None where no figures are known."""
    reading = list(reading_parts(work))
    if of.measure:
        before = seconds_of_process()
        inputs.model.load()
        after = seconds_of_process()
        start = replace(start, loading=(after[0] - before[0], after[1] - before[1]))
        measured = measured_parts(inputs, work, track=track)
        return time_of([*reading, *measured], start, processes=of.processes, source="measured")
    if of.earlier is None and not has_figures(inputs, inputs.run):
        return None
    source = of.earlier or inputs.run
    parts = [*reading, *earlier_parts(inputs, work, source)]
    return time_of(parts, start, processes=of.processes, source=str(source.root))


def _without_weights(inputs: PlanInputs, empty: Any) -> Backbone:
    """The backbone as FakeTensors, with its processor."""
    settings, model = inputs.settings, inputs.model
    if settings.quantize != "none":
        raise DmoleError(
            f"memory planning does not support --quantize {settings.quantize}",
            "plan without it: activations are the same, weights take about a fourth (4bit) or half (8bit) of float16's bytes",
        )
    try:
        processor = load_processor(resolve(model.name))
    except Exception as error:  # libraries raise many types for files that are not a processor
        raise DmoleError(
            f"backbone '{model.name}' has no processor, which determines the length of samples: {first_line(error)}",
            "put its files beside config.json, or list the sites alone: dmole sites",
        ) from error
    fake = as_fake_tensors(empty, getattr(torch, settings.dtype))
    return Backbone(model.name, "", fake, processor, precision=model.precision)


def _budget(inputs: PlanInputs, text: str) -> dict[str, Any]:
    """Sites, parameters and bytes of a budget where all sites have the same sensitivity, or why it is refused.

    `unused` is what experts on all sites leave of a larger budget, in its unit.
    """
    try:
        placed = inputs.placed(text)
    except DmoleError as error:
        return {"budget": text, "refused": error.message}
    found = {"sites": placed.sites, "parameters": placed.parameters, "bytes": BYTES_PER_PARAMETER * placed.parameters}
    rest = {"unused": placed.budget - placed.spent} if placed.budget > placed.capacity else {}
    return {"budget": text, **found, **rest}
