"""Stage `export`: a task's expert as a PEFT LoRA adapter, or merged into a copy of the whole backbone."""

from __future__ import annotations

import shutil
from pathlib import Path

from dmole_cli.artifacts.expert import ExpertFile, read_expert
from dmole_cli.artifacts.export_folder import require_ours, write_folder
from dmole_cli.artifacts.headers import is_current
from dmole_cli.artifacts.kinds import D_MOLE, EXPORT
from dmole_cli.artifacts.outcome import Outcome
from dmole_cli.artifacts.provenance import Header
from dmole_cli.artifacts.run import Run
from dmole_cli.artifacts.staleness import check_inputs
from dmole_cli.backbones.files import FILE_PATTERNS, resolve
from dmole_cli.backbones.lazy_model import LazyModel
from dmole_cli.data.tasks import Tasks
from dmole_cli.errors import DmoleError
from dmole_cli.experts.expert import Expert
from dmole_cli.experts.peft_format import write_adapter
from dmole_cli.experts.routed import RoutedExperts


def export(
    task: str,
    folder: Path,
    *,
    form: str,
    data: Tasks,
    model: LazyModel,
    run: Run,
    method: str = D_MOLE,
    force: bool = False,
) -> Outcome:
    """Write a task's expert for use without dmole; its provenance is in `dmole.json` beside it.

    Args:
        task: of the stream.
        folder: where to; made if it does not exist, and written into only if it is empty or an earlier export.
        form: `peft`, or `merged`: the whole model in float32 with its processor, the expert merged into its weights.
        data: the tasks.
        model: the backbone.
        run: the run directory.
        method: whose expert.
        force: write again what exists.

    Raises:
        DmoleError: the expert is missing, stale or a dense mixture, or the folder holds other files.
    """
    path = run.expert(task, method)
    digests = check_inputs(run, [path], fingerprint=model.fingerprint, data=data.current_digest)
    file = read_expert(path)
    if file.gates:
        raise DmoleError(
            f"the expert of {task} is a token-gated mixture, which neither a LoRA adapter nor a weight can represent",
            "export the expert of another method, or evaluate this one with dmole",
        )
    header = Header.of(
        EXPORT,
        backbone=model.fingerprint,
        settings={"task": task, "method": method, "format": form},
        inputs=digests,
    )
    reads = (str(path), *((f"backbone {model.name}",) if form == "merged" else ()))
    outcome = Outcome("export", task, folder, reads=reads)
    if is_current(folder / EXPORT.path, EXPORT, header, force=force):
        return outcome
    require_ours(folder)

    def adapter(into: Path) -> None:
        write_adapter(into, file.sites, scale=file.scale, backbone=model.name)

    def merged(into: Path) -> None:
        _write_merged(model, file, into)

    write_folder(folder, adapter if form == "peft" else merged, header)
    return outcome.wrote(sites=len(file.sites), files=sum(1 for found in folder.iterdir() if found.is_file()))


def _write_merged(model: LazyModel, file: ExpertFile, into: Path) -> None:
    """The model with the expert merged into its weights, and all files of the backbone's folder that are not weights."""
    backbone = model.load()
    routed = RoutedExperts(backbone.model, backbone.modality_of)
    try:
        routed.add("exported", Expert(file.sites, file.scale))
        routed.merge(["exported"])
        backbone.model.save_pretrained(into)
    finally:
        routed.close()
    source = Path(resolve(model.name))
    if not source.is_dir():
        backbone.processor.save_pretrained(into)
        return
    # Copied and not saved again: a processor that was loaded without one of its parts would be saved without it.
    for found in sorted({file for pattern in FILE_PATTERNS for file in source.glob(pattern)}):
        weights = found.suffix == ".safetensors" or found.name.endswith(".index.json")
        if not weights and not (into / found.name).exists():
            shutil.copyfile(found, into / found.name)
