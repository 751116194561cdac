"""The files of a run directory: artifacts, the other files that dmole writes, and unknown ones."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from dmole_cli.artifacts.costs import read_cost
from dmole_cli.artifacts.kinds import KINDS
from dmole_cli.artifacts.run import SHARED_FOLDERS, Run
from dmole_cli.errors import DmoleError
from dmole_cli.settings.record import FILE as RECORD
from dmole_cli.verification.inspection import Inspection

# Files of a run directory that are no artifacts, by their paths in it: the record, costs, caches, locks, results of batches of a
# command that was killed, what trackers write, counts of the use of experts, what belongs to
# removed and imported tasks, and files that a killed process was writing.
OTHERS = re.compile(
    "|".join(
        (
            re.escape(RECORD),
            r"costs/[^/]+/[^/]+\.json",
            r"(features/)?cache/images\.sqlite(-journal|-wal|-shm)?",
            r"cache/micro_batches\.json",
            r"cache/train-[^/]+\.lock",
            r"cache/partial/[0-9a-f]{32}\.(\d+\.jsonl|lock)",
            r"training/logs/.+",
            r"removed/.+",
            r"(bundles/[^/]+\.json|cards/[^/]+\.toml)",
            r"usage/([^/]+/)?activation\.sqlite(-journal)?",
            r"(.+/)?\.[^/]+\.[0-9a-f]{16}\.tmp",
        )
    )
)


def files_of_run(run: Run) -> list[Path]:
    """All files of a run directory, and those of the folder that it shares with other runs, without folders of others."""
    found = list(_below(run.root)) if run.root.is_dir() else []
    if run.shared is not None:
        found += [path for folder in sorted(SHARED_FOLDERS) for path in _below(run.shared / folder)]
    return list(dict.fromkeys(found))


def _below(folder: Path) -> Iterator[Path]:
    """Everything below a folder that is no folder, sorted; also symbolic links, pipes and devices."""
    for place, folders, files in os.walk(folder):
        folders.sort()
        links = [name for name in folders if Path(place, name).is_symlink()]
        yield from (Path(place, name) for name in sorted([*files, *links]))


def check_files(inspection: Inspection, files: Sequence[Path]) -> None:
    """Report files that dmole does not write, and costs that cannot be read."""
    root = inspection.run.root
    for path in files:
        name = path.relative_to(root).as_posix() if path.is_relative_to(root) else ""
        if inspection.run.identify(path) is not None or not name:
            continue  # nothing is known about what others keep in a shared folder
        if not OTHERS.fullmatch(name) or not path.is_file():
            message = f"{path} is no file of a run" + ("" if _in_folder(name) else f"; runs have {RECORD} and folders")
            inspection.report(path, DmoleError(message, "move it to another folder, or delete it"))
        elif name.startswith("costs/"):
            try:
                read_cost(path)
            except DmoleError as error:
                inspection.report(path, error)


def _in_folder(name: str) -> bool:
    return name.partition("/")[0] in {kind.folder for kind in KINDS}
