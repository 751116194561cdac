"""Stage `import`: import a LoRA adapter that was trained elsewhere as a task's expert."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from dmole_cli.artifacts.expert import ExpertFile, is_imported, write_expert
from dmole_cli.artifacts.headers import header_of, is_current
from dmole_cli.artifacts.kinds import D_MOLE, EXPERT
from dmole_cli.artifacts.outcome import Outcome
from dmole_cli.artifacts.provenance import Header, versions
from dmole_cli.artifacts.run import Run
from dmole_cli.backbones.lazy_model import LazyModel
from dmole_cli.backbones.meta_model import meta_model
from dmole_cli.backbones.sites import Site, find_sites
from dmole_cli.errors import DmoleError
from dmole_cli.experts.peft_format import Adapter, read_adapter, require_ranks
from dmole_cli.experts.peft_names import Applied, applied_by_peft
from dmole_cli.methods._one_expert import require_one_expert_per_task
from dmole_cli.methods.base import load_method
from dmole_cli.settings.model import Settings

Pair = tuple[torch.Tensor, torch.Tensor]


def import_adapter(
    task: str,
    folder: Path,
    *,
    settings: Settings,
    model: LazyModel,
    run: Run,
    method: str = D_MOLE,
    force: bool = False,
) -> Outcome:
    """Write `experts/<task>.safetensors` (other methods: in a folder of their own) from an adapter; loads no backbone weights.

    Args:
        task: of the stream.
        folder: holds adapter_config.json and adapter_model.safetensors.
        settings: the stream.
        model: the backbone that the adapter was trained on.
        run: the run directory.
        method: whose expert it becomes.
        force: replace an existing expert.

    Raises:
        DmoleError: it is not a plain LoRA adapter of this backbone, or the task has an expert that was trained in this run.
    """
    settings.position(task)
    require_one_expert_per_task(load_method(method), settings.tasks, task)
    adapter = read_adapter(folder)
    header = Header.of(
        EXPERT,
        backbone=model.fingerprint,
        settings={"method": method, "imported": "peft"},
        inputs={f"adapter:{name}": digest for name, digest in adapter.digests.items()},
        versions=versions("torch", "transformers"),
    )
    path = run.expert(task, method)
    made = None if force else header_of(path, EXPERT)
    if made is not None and not is_imported(made):
        raise DmoleError(f"{path} is an expert that was trained in this run", "add --force to replace it")
    outcome = Outcome("import", task, path, reads=(str(folder), f"backbone {model.name} (configuration)"))
    if is_current(path, EXPERT, header, force=force):
        return outcome
    sites, scale = hosted(adapter, find_sites(meta_model(model.name), "linear"), folder=folder, backbone=model.name)
    expert = ExpertFile(sites, scale, header)
    write_expert(path, expert)
    return outcome.wrote(sites=len(sites), parameters=expert.parameters)


def hosted(adapter: Adapter, sites: Sequence[Site], *, folder: Path, backbone: str) -> tuple[dict[str, Pair], float]:
    """The adapter's matrices at the backbone's sites in float32, and the scale that they share.

    Where modules have different scales, the difference is multiplied into B. Names that are no sites are read as PEFT reads
    them, which knows those of earlier versions of transformers.

    Args:
        adapter: as read.
        sites: every linear module of the backbone's blocks.
        folder: of the adapter.
        backbone: its name.

    Raises:
        DmoleError: PEFT would not apply all of the adapter, a module is adapted twice, or has another shape; the message names
            the first ones.
    """
    found, problems = _matched(adapter, sites)
    if problems or adapter.unpaired:
        applied = applied_by_peft(folder, adapter.tensors, meta_model(backbone))
        if applied.left_out:
            problems = [f"{name} is not a pair of lora_A and lora_B" for name in adapter.unpaired] + problems
            raise _unfitting(folder, problems, applied)
        # PEFT has compared the ranks.
        pairs = {path: (adapter.tensors[a], adapter.tensors[b]) for path, (a, b) in applied.modules.items()}
        adapter = replace(adapter, modules=pairs, scales=dict(applied.scales))
        found, problems = _matched(adapter, sites)
        if problems:
            raise _unfitting(folder, problems)
    else:
        require_ranks(adapter, folder)
    scale = _shared(adapter.scales)
    order = {site.name: number for number, site in enumerate(sites)}
    matrices = {}
    for path in sorted(found, key=lambda path: order[found[path]]):
        a, b = adapter.modules[path]
        factor = adapter.scales[path] / scale
        b = b if factor == 1 else b * factor
        if not bool(b.isfinite().all()):
            raise _unfitting(
                folder, [f"{path} has a scale of {adapter.scales[path]:g}, with which its values are not finite"]
            )
        matrices[found[path]] = a, b
    return matrices, scale


def _matched(adapter: Adapter, sites: Sequence[Site]) -> tuple[dict[str, str], list[str]]:
    """Path in the adapter -> site, and what does not fit, in words."""
    by_name = {site.name: site for site in sites}
    found: dict[str, str] = {}
    problems = []
    for path, (a, b) in adapter.modules.items():
        names = [path] if path in by_name else [name for name in by_name if name.endswith(f".{path}")]
        if len(names) != 1:
            what = f"matches {' and '.join(names[:3])}" if names else "is not a linear module of the backbone's blocks"
            problems.append(f"{path} {what}")
        elif names[0] in found.values():
            problems.append(f"{names[0]} is adapted twice")
        elif (a.shape[1], b.shape[0]) != (by_name[names[0]].in_features, by_name[names[0]].out_features):
            site = by_name[names[0]]
            problems.append(
                f"{path} maps {a.shape[1]} to {b.shape[0]} features, "
                f"the backbone's module {site.in_features} to {site.out_features}"
            )
        found[path] = names[0] if len(names) == 1 else ""
    return found, problems


def _unfitting(folder: Path, problems: Sequence[str], applied: Applied | None = None) -> DmoleError:
    more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
    message = f"{folder} does not fit the backbone: {'; '.join(problems[:3])}{more}"
    if applied is not None and applied.problem:
        message += f"; PEFT cannot load it either: {applied.problem}"
    elif applied is not None:
        expected = " and ".join(applied.expected) or "no module, by its target_modules"
        left_out = f"{len(applied.left_out)} tensor(s) such as {applied.left_out[0]}"
        message += f"; PEFT would leave out {left_out}, and expects {expected}"
    return DmoleError(
        message,
        "list the linear modules: dmole sites --sites linear; or pass the --backbone that the adapter was trained on",
    )


def _shared(scales: Mapping[str, float]) -> float:
    """The most frequent scale, so that most matrices stay unchanged; never 0, which could not be divided by."""
    counts = Counter(scale for scale in scales.values() if scale)
    return counts.most_common(1)[0][0] if counts else 1.0
