"""The folder of an export: complete or not there, and never one with other files."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from dmole_cli.artifacts.export import files_of_export, write_export_header
from dmole_cli.artifacts.files import unwritable
from dmole_cli.artifacts.kinds import EXPORT
from dmole_cli.artifacts.provenance import Header
from dmole_cli.artifacts.temporary_folder import temporary_beside
from dmole_cli.errors import DmoleError


def require_ours(folder: Path) -> None:
    """Refuse a folder with files that are not of an export.

    Raises:
        DmoleError: the folder is a file, or holds other files.
    """
    if folder.exists() and not folder.is_dir():
        raise DmoleError(f"{folder} is a file", "pass a folder; it is made when needed")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / EXPORT.path).is_file():
        raise DmoleError(f"{folder} holds other files", "pass a folder that is empty or does not exist")


def write_folder(folder: Path, write: Callable[[Path], None], header: Header) -> None:
    """Fill a folder from a temporary one beside it.

    A new folder appears complete, by a rename. In the folder of an earlier export file after file is replaced, the provenance
    last: until then it states the earlier export, and the same command continues after an interruption. Files of the earlier
    export that the new one does not have are deleted.

    Args:
        folder: of the export.
        write: fills an empty folder.
        header: what the export is made from.

    Raises:
        DmoleError: writing the folder failed.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with temporary_beside(folder) as temporary:
            write(temporary)
            new = [file.relative_to(temporary).as_posix() for file in sorted(temporary.rglob("*")) if file.is_file()]
            if not folder.exists() or not any(folder.iterdir()):
                write_export_header(temporary / EXPORT.path, header, new)
                temporary.rename(folder.resolve())
                return
            before = files_of_export(folder)
            for name in new:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (temporary / name).replace(folder / name)
            _delete(folder, before.difference(new))
    except OSError as error:
        raise unwritable(folder, error) from error
    write_export_header(folder / EXPORT.path, header, new)


def _delete(folder: Path, names: Iterable[str]) -> None:
    """Delete files, and the folders that become empty."""
    for name in sorted(names):
        (folder / name).unlink(missing_ok=True)
        for parent in (folder / name).relative_to(folder).parents:
            if parent != Path() and (folder / parent).is_dir() and not any((folder / parent).iterdir()):
                (folder / parent).rmdir()
