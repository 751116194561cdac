"""Stage `import`: a LoRA adapter that was trained elsewhere becomes a task's expert."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from dmole_cli.artifacts.expert import SCHEMA, VERSION, ExpertFile, expert_header, is_imported, write_expert
from dmole_cli.artifacts.outcome import Outcome
from dmole_cli.artifacts.provenance import Header, up_to_date, versions
from dmole_cli.backbones.meta_model import meta_model
from dmole_cli.backbones.sites import Site, find_sites
from dmole_cli.errors import DmoleError
from dmole_cli.experts.peft_format import Adapter, read_adapter
from dmole_cli.methods.base import load_method
from dmole_cli.session import Session

Pair = tuple[torch.Tensor, torch.Tensor]


def import_adapter(
    session: Session, task: str, folder: Path, *, method: str = "d-mole", force: bool = False
) -> Outcome:
    """Write `experts/<task>.safetensors` (other methods: in their folder) from an adapter; loads no weights of the backbone.

    Args:
        session: knows the backbone that the adapter was trained on.
        task: of the stream.
        folder: holds adapter_config.json and adapter_model.safetensors.
        method: whose expert it becomes.
        force: replace an expert that is there.

    Raises:
        DmoleError: it is no plain LoRA adapter of this backbone, or the task has an expert that was trained.
    """
    session.config.position(task)
    require_one_expert_a_task(method, session.config.tasks, task)
    adapter = read_adapter(folder)
    header = Header(
        SCHEMA,
        VERSION,
        backbone=session.fingerprint,
        settings={"method": method, "imported": "peft"},
        inputs={f"adapter:{name}": digest for name, digest in adapter.digests.items()},
        versions=versions("torch", "transformers"),
    )
    path = session.run.expert(task, method)
    redo = session.command("import", task, **({"method": method} if method != "d-mole" else {})) + f" {folder}"
    made = None if force else expert_header(path)
    if made is not None and not is_imported(made):
        raise DmoleError(f"{path} is an expert that was trained in this run", f"{redo} --force replaces it")
    reads = (str(folder), f"backbone {session.config.backbone} (configuration)")
    if up_to_date(path, made, header, force=force, command=redo):
        return Outcome("import", task, path, written=False, reads=reads)
    sites, scale = hosted(adapter, find_sites(meta_model(session.config.backbone), "linear"), folder=folder)
    expert = ExpertFile(sites, scale, header)
    write_expert(path, expert)
    return Outcome(
        "import", task, path, written=True, reads=reads, facts={"sites": len(sites), "parameters": expert.parameters}
    )


def require_one_expert_a_task(method: str, tasks: Sequence[str], task: str) -> None:
    """Refuse methods whose experts are more than what an adapter holds.

    Raises:
        DmoleError: the method trains one expert on and on, keeps more than it, or trains nothing at this task.
    """
    rules = load_method(method)
    if rules.continues or rules.has_memory:
        raise DmoleError(
            f"method {method} trains one expert on through all tasks, which an adapter cannot stand in for",
            "import for a method with an expert of its own for every task, like d-mole or finetune",
        )
    if task not in rules.trained_tasks(tasks):
        there = ", ".join(rules.trained_tasks(tasks)) or "none"
        raise DmoleError(f"method {method} has no expert of task {task}", f"tasks at which it trains: {there}")


def hosted(adapter: Adapter, sites: Sequence[Site], *, folder: Path) -> tuple[dict[str, Pair], float]:
    """The adapter's matrices at the backbone's sites, float32, and the scale that they share.

    Where scales differ from one module to the next, B carries the difference.

    Args:
        adapter: as read.
        sites: every linear module of the backbone's blocks.
        folder: of the adapter, for messages.

    Raises:
        DmoleError: a module is not there, is meant twice, or has another shape; all of them are named.
    """
    by_name = {site.name: site for site in sites}
    found: dict[str, str] = {}
    problems = []
    for path, (a, b) in adapter.modules.items():
        names = [path] if path in by_name else [name for name in by_name if name.endswith(f".{path}")]
        if len(names) != 1:
            what = f"could be {' or '.join(names[:3])}" if names else "is no linear module of the backbone's blocks"
            problems.append(f"{path} {what}")
        elif names[0] in found.values():
            problems.append(f"{names[0]} is adapted twice")
        elif (a.shape[1], b.shape[0]) != (by_name[names[0]].in_features, by_name[names[0]].out_features):
            site = by_name[names[0]]
            problems.append(
                f"{path} goes from {a.shape[1]} to {b.shape[0]}, the backbone's from {site.in_features} to {site.out_features}"
            )
        found[path] = names[0] if len(names) == 1 else ""
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise DmoleError(
            f"{folder} does not fit the backbone: {'; '.join(problems[:3])}{more}",
            "see where experts may sit: dmole sites --sites linear; or pass the --backbone that the adapter was trained on",
        )
    scale = _shared(adapter.scales)
    order = {site.name: number for number, site in enumerate(sites)}
    matrices = {}
    for path in sorted(found, key=lambda path: order[found[path]]):
        a, b = (matrix.float() for matrix in adapter.modules[path])
        factor = adapter.scales[path] / scale
        matrices[found[path]] = a, b if factor == 1 else b * factor
    return matrices, scale


def _shared(scales: Mapping[str, float]) -> float:
    """The scale that most modules have, so that most matrices stay what they are; never 0, which nothing divides."""
    counts = Counter(scale for scale in scales.values() if scale)
    return counts.most_common(1)[0][0] if counts else 1.0
