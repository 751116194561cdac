"""Stage `export`: a task's expert as a PEFT LoRA adapter, or merged into a copy of the whole backbone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from dmole_cli.artifacts.expert import ExpertFile, read_expert
from dmole_cli.artifacts.export import write_export_header
from dmole_cli.artifacts.files import unwritable
from dmole_cli.artifacts.headers import is_current
from dmole_cli.artifacts.kinds import D_MOLE, EXPORT
from dmole_cli.artifacts.outcome import Outcome
from dmole_cli.artifacts.provenance import Header
from dmole_cli.artifacts.run import Run
from dmole_cli.artifacts.staleness import check_inputs
from dmole_cli.artifacts.temporary_folder import temporary_beside
from dmole_cli.backbones.files import FILE_PATTERNS, resolve
from dmole_cli.backbones.lazy_model import LazyModel
from dmole_cli.data.tasks import Tasks
from dmole_cli.errors import DmoleError
from dmole_cli.experts.expert import Expert
from dmole_cli.experts.peft_format import write_adapter
from dmole_cli.experts.routed import RoutedExperts

FORMATS = ("peft", "merged")


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
    if form not in FORMATS:
        raise DmoleError(f"unknown --format '{form}'", f"choose one of: {', '.join(FORMATS)}")
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
    _require_ours(folder)

    def adapter(into: Path) -> None:
        write_adapter(into, file.sites, scale=file.scale, backbone=model.name)

    def merged(into: Path) -> None:
        _write_merged(model, file, into)

    _write_folder(folder, adapter if form == "peft" else merged, header)
    return outcome.wrote(sites=len(file.sites), files=sum(1 for found in folder.iterdir() if found.is_file()))


def _require_ours(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise DmoleError(f"{folder} is a file", "pass a folder; it is made when needed")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / EXPORT.path).is_file():
        raise DmoleError(f"{folder} holds other files", "pass a folder that is empty or does not exist")


def _write_folder(folder: Path, write: Callable[[Path], None], header: Header) -> None:
    """Fill a folder from a temporary one beside it.

    A new folder appears complete, by a rename. In the folder of an earlier export file after file is replaced, the provenance
    last: until then it states the earlier export, and the same command continues after an interruption.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with temporary_beside(folder) as temporary:
            write(temporary)
            if not folder.exists() or not any(folder.iterdir()):
                write_export_header(temporary / EXPORT.path, header)
                temporary.rename(folder.resolve())
                return
            for file in sorted(temporary.iterdir()):
                file.replace(folder / file.name)
    except OSError as error:
        raise unwritable(folder, error) from error
    write_export_header(folder / EXPORT.path, header)


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
