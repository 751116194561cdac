"""Lists a folder, and never takes an unreadable one for an empty one."""

from __future__ import annotations

import os
from pathlib import Path

from dmole_cli.errors import DmoleError


def list_folder(folder: Path) -> list[Path]:
    """The entries of a folder, sorted by name, without hidden ones; none where it does not exist.

    Raises:
        DmoleError: it is not a folder, or cannot be read.
    """
    try:
        with os.scandir(folder) as found:
            return sorted(Path(entry.path) for entry in found if not entry.name.startswith("."))
    except FileNotFoundError:
        if folder.is_symlink():
            raise DmoleError(f"{folder} is a broken link", "delete it, or restore the folder") from None
        return []
    except NotADirectoryError:
        raise DmoleError(f"{folder} is not a folder", "delete the file, or move it away") from None
    except OSError as error:
        raise DmoleError(
            f"{folder} cannot be read: {error.strerror}", "check the permissions of the folder and the disk"
        ) from error
