"""What lies upstream of a stage: the artifacts that it reads, those they were made from, and so on to the first ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from dmole_cli.artifacts.allocation import read_allocation
from dmole_cli.artifacts.expert import expert_header, is_imported
from dmole_cli.artifacts.features import features_header
from dmole_cli.artifacts.memory import memory_header
from dmole_cli.artifacts.profile import profile_header
from dmole_cli.artifacts.provenance import Header, require_current
from dmole_cli.artifacts.router import router_header
from dmole_cli.artifacts.run import D_MOLE, SHARED_FOLDERS
from dmole_cli.errors import DmoleError
from dmole_cli.session import Session

# What to type to make each kind of artifact, by its folder in the run directory.
MAKERS = {
    "profiles": "profile",
    "allocations": "allocate",
    "routers": "train-router",
    "features": "train-router",
    "experts": "train-task",
    "memories": "train-task",
}
HEADERS = {
    "profiles": profile_header,
    "routers": router_header,
    "features": features_header,
    "experts": expert_header,
    "memories": memory_header,
}


def check_inputs(session: Session, paths: Sequence[Path], *, data: Mapping[str, str] | None = None) -> None:
    """Refuse inputs that are missing, stale or of another backbone, however far upstream: the first cause is named.

    Args:
        session: knows the run directory and the backbone.
        paths: the artifacts that a stage reads; each must be there.
        data: digests of the splits that the caller has read, under the names that headers record them by. The data of
            other tasks are not read again here: their own stages notice when they change.

    Raises:
        DmoleError: names the artifact and the command that mends it.
    """
    seen: set[Path] = set()
    for path in paths:
        _check(session, path, data or {}, seen)


def _check(session: Session, path: Path, data: Mapping[str, str], seen: set[Path]) -> None:
    if path in seen:
        return
    seen.add(path)
    redo = _maker(session, path)
    if not path.exists():
        raise DmoleError(f"{path} is not there", f"make it with: {redo}")
    header = _header(session.run.name_of(path).split("/")[0], path, redo)
    if is_imported(header):
        redo = f"{_maker(session, path, command='import')} ADAPTER"
    session.require_backbone(path, header.backbone, redo)
    for name in sorted(header.inputs):
        source = session.run.path_of(name)
        # An input that is gone cannot be asked; its reader still has what was made from it.
        if name.split("/")[0] in MAKERS and source.is_file():
            _check(session, source, data, seen)
    require_current(path, header, find=session.run.path_of, command=redo, data=data)


def _maker(session: Session, path: Path, *, command: str = "") -> str:
    """The command that makes an artifact of the run directory; `command` in place of its folder's usual one."""
    parts = session.run.name_of(path).split("/")
    method = parts[1] if parts[0] not in SHARED_FOLDERS and len(parts) > 2 else D_MOLE
    options = {"method": method} if method != D_MOLE else {}
    return session.command(command or MAKERS[parts[0]], path.stem, **options)


def _header(folder: str, path: Path, redo: str) -> Header:
    if folder == "allocations":
        return read_allocation(path, hint=f"make it again with: {redo} --force")[1]
    header = HEADERS[folder](path)
    assert header is not None  # it exists
    return header
