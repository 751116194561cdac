"""Stage `export --format vllm`: the experts of a run as LoRA adapters for vLLM, with the routers and a script that chooses."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from dmole_cli.artifacts.evaluation import read_answers
from dmole_cli.artifacts.expert import ExpertFile, read_expert
from dmole_cli.artifacts.export_folder import require_ours, write_folder
from dmole_cli.artifacts.files import write_json
from dmole_cli.artifacts.headers import is_current
from dmole_cli.artifacts.kinds import D_MOLE, EXPORT
from dmole_cli.artifacts.labels import labelled
from dmole_cli.artifacts.outcome import Outcome
from dmole_cli.artifacts.provenance import Header
from dmole_cli.artifacts.router import RouterFile, read_router
from dmole_cli.artifacts.run import Run
from dmole_cli.artifacts.staleness import check_inputs
from dmole_cli.backbones.families.base import family_class
from dmole_cli.backbones.lazy_model import LazyModel
from dmole_cli.backbones.meta_model import meta_model
from dmole_cli.backbones.sites import find_sites
from dmole_cli.backbones.vllm_lora import MAX_RANKS, VllmLora
from dmole_cli.data.card import Generation
from dmole_cli.data.tasks import Tasks
from dmole_cli.errors import DmoleError
from dmole_cli.experts.joined import joined, rank_of
from dmole_cli.experts.peft_format import write_adapter
from dmole_cli.inference import check_vllm
from dmole_cli.methods._trained import trained_tasks
from dmole_cli.methods.base import load_method
from dmole_cli.routing import standalone
from dmole_cli.settings.model import Settings

SCRIPTS = {"router.py": standalone, "check.py": check_vllm}
DIGITS = 8  # of an expert's digest in the name of its adapter
MOST = {"top-2": 2, "top-1": 1}  # routing -> number of active experts, for the rules that look at one sample
SPLITS = ("test", "validation")
VERSION = 1  # of the layout of the folder


@dataclass(frozen=True)
class _Sources:
    """What the adapters are made of.

    Attributes:
        tasks: in the order of the stream.
        experts, routers: of these tasks.
        digests: of their files, under their names in headers.
        names: task -> name of its adapter.
        modules: module path -> its name in the adapters.
        vision: whether an expert has a module of the vision encoder.
        unknown: modules of the language model for which it is unknown whether vLLM finds them.
    """

    tasks: Sequence[str]
    experts: Mapping[str, ExpertFile]
    routers: Mapping[str, RouterFile]
    digests: Mapping[str, str]
    names: Mapping[str, str]
    modules: Mapping[str, str]
    vision: bool
    unknown: Sequence[str]


def export_vllm(
    tasks: Sequence[str] | None,
    folder: Path,
    *,
    settings: Settings,
    data: Tasks,
    model: LazyModel,
    run: Run,
    method: str = D_MOLE,
    force: bool = False,
) -> Outcome:
    """Write an adapter per expert, and per pair of experts that an evaluation of the run has activated together.

    Args:
        tasks: of the stream, in its order; None for those that were trained so far.
        folder: where to; made if it does not exist, and written into only if it is empty or an earlier export.
        settings: the routing and the factor of the thresholds.
        data: the tasks.
        model: the backbone; its weights are not loaded.
        run: the run directory.
        method: whose experts; it must have routers.
        force: write again what exists.

    Raises:
        DmoleError: an expert or a router is missing or stale, the method or the routing cannot be represented, vLLM would ignore
            a part of an adapter, or the folder holds other files.
    """
    most = _most(method, settings)
    tasks = tasks or _trained(method, settings, run)
    sources = _sources(tasks, data=data, model=model, run=run, method=method)
    together = _activated(run, method, settings) if most == 2 else set()
    pairs = [pair for pair in combinations(tasks, 2) if frozenset(pair) in together]
    adapters = [*((task,) for task in tasks), *pairs]
    lengths = {task: data.card(task).generation for task in tasks}
    header = Header.of(
        EXPORT,
        backbone=model.fingerprint,
        settings={
            "tasks": list(tasks),
            "method": method,
            "format": "vllm",
            "pairs": [list(pair) for pair in pairs],
            "most": most,
            "threshold_scale": settings.evaluate.threshold_scale,
            "lengths": {task: own.model_dump() for task, own in lengths.items()},
            "layout": VERSION,
        },
        inputs=dict(sources.digests),
    )
    reads = tuple(str(run.path_of(name)) for name in sources.digests)
    outcome = Outcome("export", ", ".join(tasks), folder, reads=reads, warnings=_warnings(sources))
    if is_current(folder / EXPORT.path, EXPORT, header, force=force):
        return outcome
    require_ours(folder)
    manifest = _manifest(sources, adapters, model.name, settings, lengths) | {"most": most}

    def fill(into: Path) -> None:
        _fill(into, manifest, sources, run)

    write_folder(folder, fill, header)
    return outcome.wrote(experts=len(tasks), pairs=len(pairs), max_lora_rank=manifest["max_lora_rank"])


def _warnings(sources: _Sources) -> tuple[str, ...]:
    if not sources.unknown:
        return ()
    return (
        f"it is unknown whether vLLM finds {len(sources.unknown)} modules of the language model by their names, such as "
        f"{sources.unknown[0]}: run check.py of the folder",
    )


def _most(method: str, settings: Settings) -> int:
    """Number of experts that may be active for a sample."""
    rules = load_method(method)
    if not rules.uses_routers or rules.merges:
        raise DmoleError(f"method {method} has no routers that choose experts for a sample", "pass --format peft")
    routing = settings.evaluate.routing
    if routing not in MOST:
        raise DmoleError(
            f"the exported router does not have the routing {routing}",
            f"choose one of: {', '.join(MOST)}",
        )
    return MOST[routing]


def _trained(method: str, settings: Settings, run: Run) -> Sequence[str]:
    """The tasks that were trained so far; the whole stream if there is none, so that the first missing expert is reported."""
    return settings.tasks[: trained_tasks(load_method(method), settings, run)] or settings.tasks


def _sources(tasks: Sequence[str], *, data: Tasks, model: LazyModel, run: Run, method: str) -> _Sources:
    """The experts and routers, checked."""
    paths = {task: run.expert(task, method) for task in tasks}
    routers = {task: run.router(task) for task in tasks}
    files = [*paths.values(), *routers.values()]
    digests = check_inputs(run, files, fingerprint=model.fingerprint, data=data.current_digest)
    experts = {task: read_expert(path) for task, path in paths.items()}
    if gated := [task for task, expert in experts.items() if expert.gates]:
        raise DmoleError(
            f"the expert of {gated[0]} is a token-gated mixture, which a LoRA adapter cannot represent",
            "export the experts of another method, or evaluate this one with dmole",
        )
    names = {task: f"{task}-{digests[run.name_of(path)][:DIGITS]}" for task, path in paths.items()}
    backbone = meta_model(model.name)
    modality = {site.name: site.modality for site in find_sites(backbone, "linear")}
    kind = str(backbone.config.model_type)
    modules, unknown = _modules(experts, modality, family_class(kind).vllm, kind)
    vision = any(modality.get(module) == "vision" for module in modules)
    return _Sources(
        tasks, experts, {t: read_router(p) for t, p in routers.items()}, digests, names, modules, vision, unknown
    )


def _modules(
    experts: Mapping[str, ExpertFile], modality: Mapping[str, str], facts: VllmLora, kind: str
) -> tuple[dict[str, str], list[str]]:
    """The name of each module in the adapters, and the modules whose names are only assumed.

    Raises:
        DmoleError: vLLM would ignore a module of the vision encoder, or it is unknown whether it would.
    """
    names, unknown = {}, []
    for task, expert in experts.items():
        for module in expert.sites:
            name = facts.name_of(module)
            if name is None and modality.get(module) != "language":
                raise DmoleError(
                    f"vLLM may silently ignore the part of the expert of {task} at {module} (model type {kind}): "
                    f"{facts.refused}",
                    "train experts with `dmole allocate --modalities language`, or pass --format merged --task TASK",
                )
            if name is None:
                unknown.append(module)
            names[module] = name or module
    return names, unknown


def _activated(run: Run, method: str, settings: Settings) -> set[frozenset[str]]:
    """The sets of experts that were active together for a sample of a stored evaluation."""
    label = labelled(method, settings.evaluate)
    folders = [run.evaluations(split) / label for split in SPLITS]
    found: set[frozenset[str]] = set()
    for path in sorted(path for folder in folders for path in folder.glob("*/*.parquet")):
        table, _ = read_answers(path)
        found |= {frozenset(names) for names in table.column("active").to_pylist()}
    return found


def _manifest(
    sources: _Sources,
    adapters: Sequence[Sequence[str]],
    backbone: str,
    settings: Settings,
    lengths: Mapping[str, Generation],
) -> dict[str, Any]:
    """What the scripts read: `vllm.json`."""
    rank = max(rank_of([sources.experts[task] for task in own]) for own in adapters)
    if rank > MAX_RANKS[-1]:
        raise DmoleError(
            f"an adapter has the rank {rank}, and vLLM accepts at most {MAX_RANKS[-1]}",
            "export fewer tasks with --task, or allocate at a lower rank",
        )
    scale = settings.evaluate.threshold_scale

    def limits(own: Generation) -> dict[str, int]:
        return {"max": own.max_new_tokens, "min": own.min_new_tokens}

    layouts = [router.layout for router in sources.routers.values()]
    return {
        "backbone": backbone,
        "max_lora_rank": next(accepted for accepted in MAX_RANKS if accepted >= rank),
        "vision": sources.vision,
        "layout": layouts[0],
        "width": sum(part["width"] for part in layouts[0]),
        "lengths": limits(Generation()),
        "tasks": [
            {
                "name": task,
                "router": f"routers/{task}.safetensors",
                "decoder": router.decoder,
                "threshold": router.threshold * scale,
                "lengths": limits(lengths[task]),
            }
            for task, router in sources.routers.items()
        ],
        "adapters": [_adapter(own, sources.names) for own in adapters],
    }


def _adapter(tasks: Sequence[str], names: Mapping[str, str]) -> dict[str, Any]:
    name = "+".join(names[task] for task in tasks)
    return {"name": name, "tasks": list(tasks), "path": f"adapters/{name}"}


def _fill(into: Path, manifest: Mapping[str, Any], sources: _Sources, run: Run) -> None:
    """Write all files but the provenance into an empty folder."""
    for one in manifest["adapters"]:
        sites = joined([sources.experts[task] for task in one["tasks"]])
        (into / one["path"]).mkdir(parents=True)
        write_adapter(into / one["path"], sites, scale=1.0, backbone=manifest["backbone"], names=sources.modules)
    for task in manifest["tasks"]:
        target = into / task["router"]
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(run.router(task["name"]), target)
    for name, script in SCRIPTS.items():
        (into / name).write_bytes(Path(str(script.__file__)).read_bytes())
    write_json(into / standalone.MANIFEST, manifest)
