"""Stage `export`: a task's expert as a PEFT LoRA adapter, or folded into a copy of the whole backbone."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from dmole_cli.artifacts.expert import ExpertFile, read_expert
from dmole_cli.artifacts.files import unwritable, write_json
from dmole_cli.artifacts.outcome import Outcome
from dmole_cli.artifacts.provenance import Header, read_header, up_to_date
from dmole_cli.artifacts.staleness import check_inputs
from dmole_cli.backbones.files import FILE_PATTERNS, resolve
from dmole_cli.errors import DmoleError
from dmole_cli.experts.peft_format import write_adapter
from dmole_cli.experts.routed import Expert, RoutedExperts
from dmole_cli.session import Session

SCHEMA, VERSION, PROVENANCE = "dmole.export", 1, "dmole.json"
FORMATS = ("peft", "merged")


def export(
    session: Session, task: str, folder: Path, *, form: str, method: str = "d-mole", force: bool = False
) -> Outcome:
    """Write a task's expert for use outside of dmole; what was made from what stands beside it in dmole.json.

    Args:
        session: configuration, run directory, backbone.
        task: of the stream.
        folder: where; made if it is not there, and only written into if it is empty or an earlier export.
        form: `peft`, or `merged`: the whole model in float32 with its processor, the expert added to its weights.
        method: whose expert.
        force: write again what is there.

    Raises:
        DmoleError: the expert is missing, stale or a dense mixture, or the folder is somebody else's.
    """
    if form not in FORMATS:
        raise DmoleError(f"unknown --format '{form}'", f"choose one of: {', '.join(FORMATS)}")
    session.config.position(task)
    path = session.run.expert(task, method)
    check_inputs(session, [path])
    options = {"method": method} if method != "d-mole" else {}
    file = read_expert(path, hint=f"make it again with: {session.command('train-task', task, **options)} --force")
    if file.gates:
        raise DmoleError(
            f"the expert of {task} is a dense mixture, weighed anew for every token, which neither LoRA nor a weight can hold",
            "export the expert of another method, or evaluate this one with dmole",
        )
    header = Header(
        SCHEMA,
        VERSION,
        backbone=session.fingerprint,
        settings={"task": task, "method": method, "format": form},
        inputs=session.digests(path),
    )
    redo = session.command("export", task, **options) + f" --format {form} {folder}"
    reads = (str(path), *((f"backbone {session.config.backbone}",) if form == "merged" else ()))
    if up_to_date(folder, None if force else _made(folder), header, force=force, command=redo):
        return Outcome("export", task, folder, written=False, reads=reads)
    _require_ours(folder)

    def adapter(into: Path) -> None:
        write_adapter(into, file.sites, scale=file.scale, backbone=session.config.backbone)

    def merged(into: Path) -> None:
        _write_merged(session, file, into)

    _write_folder(folder, adapter if form == "peft" else merged, header)
    facts = {"sites": len(file.sites), "files": sum(1 for found in folder.iterdir() if found.is_file())}
    return Outcome("export", task, folder, written=True, reads=reads, facts=facts)


def _made(folder: Path) -> Header | None:
    """How an earlier export came about."""
    path = folder / PROVENANCE
    return read_header(path.read_bytes(), path=path, schema=SCHEMA, version=VERSION) if path.is_file() else None


def _require_ours(folder: Path) -> None:
    if folder.is_file():
        raise DmoleError(f"{folder} is a file", "pass a folder; it is made when needed")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / PROVENANCE).is_file():
        raise DmoleError(f"{folder} holds other files", "pass a folder that is empty or not there yet")


def _write_folder(folder: Path, write: Callable[[Path], None], header: Header) -> None:
    """Fill a folder from one beside it, file by file and its provenance last: with that, it is complete."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
            write(Path(temporary))
            (folder / PROVENANCE).unlink(missing_ok=True)
            for file in sorted(Path(temporary).iterdir()):
                file.replace(folder / file.name)
    except OSError as error:
        raise unwritable(folder, error) from error
    write_json(folder / PROVENANCE, header.as_dict())


def _write_merged(session: Session, file: ExpertFile, into: Path) -> None:
    """The model with the expert in its weights, and everything of the backbone's folder that is not the model."""
    backbone = session.load()
    routed = RoutedExperts(backbone.model, backbone.modality_of)
    try:
        routed.add("exported", Expert(file.sites, file.scale))
        routed.merge(["exported"])
        backbone.model.save_pretrained(into)
    finally:
        routed.close()
    source = Path(resolve(session.config.backbone))
    if not source.is_dir():
        backbone.processor.save_pretrained(into)
        return
    # Copied and not saved again: a processor that was loaded without one of its parts would be saved without it.
    for found in sorted({file for pattern in FILE_PATTERNS for file in source.glob(pattern)}):
        if (
            found.suffix != ".safetensors"
            and not found.name.endswith(".index.json")
            and not (into / found.name).exists()
        ):
            shutil.copyfile(found, into / found.name)
