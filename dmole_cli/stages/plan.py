"""Stage `plan`: sites and parameters per budget, memory, bytes on disk and time; needs neither weights nor a profile."""

from __future__ import annotations

import time
from collections.abc import Sequence
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
from dmole_cli.planning.durations import Part, Start, time_of
from dmole_cli.planning.earlier import earlier_parts, has_figures
from dmole_cli.planning.inputs import PlanInputs
from dmole_cli.planning.measuring import measured_parts
from dmole_cli.planning.memory import memory_rows
from dmole_cli.planning.work import TaskWork, stream_work
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
    "fragmentation on a CPU; on a GPU: weights + tensors",
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


def plan(
    tasks: Sequence[str],
    *,
    settings: Settings,
    data: Tasks,
    model: LazyModel,
    run: Run,
    stream: Sequence[str] = (),
    measure: bool = False,
    earlier: Run | None = None,
    processes: int = 1,
    track: Track = quiet,
) -> dict[str, Any]:
    """State sites, parameters and bytes per budget, the memory of profiling and training, and bytes and time of a stream.

    Args:
        tasks: tasks whose longest samples determine the memory.
        settings: budget, batch sizes, data type and precision.
        data: the tasks.
        model: the backbone; its weights are loaded only to measure.
        run: the run directory, for allocations and figures that exist.
        stream: tasks whose artifacts and time are planned; by default `tasks`.
        measure: load the backbone, and measure the time of the stages' work for a minute.
        earlier: run whose figures of time are used; None for `run`, if it has some.
        processes: processes that share the work of a command.
        track: shows the progress of the measurement.

    Raises:
        DmoleError: the backbone has no configuration or no processor, a task's data cannot be read, or `earlier` has no figures.
    """
    empty = meta_model(model.name, attention=settings.attention)
    started = _since_start()
    sites = find_candidates(empty, settings.profile.sites)
    inputs = PlanInputs(settings, data, model, run, sites, sum(p.numel() for p in empty.parameters()))
    libraries = library_bytes()
    backbone = _without_weights(inputs, empty)
    work = stream_work(inputs, stream or tasks, backbone.inputs)
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
    if measure:
        parts, start = _measured(inputs, work, started, track)
        found["time"] = time_of(parts, start, processes=processes, source="measured")
    elif earlier is not None or has_figures(inputs, run):
        source = earlier or run
        start = Start(*started)
        found["time"] = time_of(
            earlier_parts(inputs, work, source), start, processes=processes, source=str(source.root)
        )
    else:
        found["time"] = None
    found["memory"] = memory_rows(inputs, tasks, backbone, libraries=libraries)
    return found | {"assumes": [*ASSUMPTIONS, *(TIME_ASSUMPTIONS if found["time"] else ())]}


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


def _measured(
    inputs: PlanInputs, work: Sequence[TaskWork], started: tuple[float, float], track: Track
) -> tuple[list[Part], Start]:
    wall, cpu = time.perf_counter(), time.process_time()
    inputs.model.load()
    loading, loading_cpu = time.perf_counter() - wall, time.process_time() - cpu
    return measured_parts(inputs, work, track=track), Start(*started, loading, loading_cpu)


def _since_start() -> tuple[float, float]:
    """Seconds since this process started: by the wall clock, and of its processor time."""
    import psutil

    return time.time() - psutil.Process().create_time(), time.process_time()


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
