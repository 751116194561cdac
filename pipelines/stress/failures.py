"""Let the system fail at every stage: `python -m pipelines.stress.failures`.

No file may become larger than some limit (as on a full disk); the folder is read-only; the temporary folder is full; stdout is
full or closed. Each must end in one error, or well where the stage does not need what fails; no file may be incomplete; and the
same command must succeed afterwards with the bytes of an undisturbed run.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import resource
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from pipelines.stress._commands import (
    STAGES,
    after,
    contents,
    differences,
    finish,
    left_over,
    load_libraries,
    reference,
    run,
    start,
)

READ_ONLY = "read-only folder"


def limited(size: int) -> Callable[[], None]:
    """No file may have more bytes: writing fails as on a full disk."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def without_rights() -> None:
    """Give up the right to write where a file's permissions do not allow it, which the superuser has."""
    if os.geteuid() != 0:
        return
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # the third version of the kernel's structure; this process
    if ctypes.CDLL(None, use_errno=True).capset(header, (ctypes.c_uint32 * 6)()) != 0:
        raise OSError(ctypes.get_errno(), "capset")


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Without the permission to write in a folder and those below it."""
    folders = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    for path in folders:
        path.chmod(0o555)
    try:
        yield
    finally:
        for path in folders:
            path.chmod(0o755)


def stdout_to(path: str) -> Callable[[], None]:
    """Send stdout to a file that already exists."""

    def prepare() -> None:
        opened = os.open(path, os.O_WRONLY)
        os.dup2(opened, 1)
        os.close(opened)

    return prepare


def closed_stdout() -> None:
    """As of `>&-`."""
    os.close(1)


@contextmanager
def full_folder(folder: Path) -> Iterator[Path | None]:
    """A file system without a free byte; None where none can be mounted."""
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", "size=64k", "dmole-stress"]
    try:
        mounted = subprocess.run(["mount", *options, str(folder)], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        yield None
        return
    try:
        with (folder / "full").open("wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)):
                    pass
            except OSError:
                pass
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=False)


def temporary_in(folder: Path) -> Callable[[], None]:
    """Temporary files go into this folder."""

    def prepare() -> None:
        os.environ["TMPDIR"] = tempfile.tempdir = str(folder)

    return prepare


def failures(full: Path | None) -> dict[str, tuple[Callable[[], None], bool]]:
    """Failure -> what brings it about in a new process, and whether the command prints JSON."""
    found: dict[str, tuple[Callable[[], None], bool]] = {
        **{f"files of at most {size} bytes": (limited(size), False) for size in (500, 3000, 20000)},
        "full stdout": (stdout_to("/dev/full"), True),
        "closed stdout": (closed_stdout, True),
    }
    found[READ_ONLY] = (without_rights, False)
    if full is not None:
        found["full temporary folder"] = (temporary_in(full), False)
    return found


def main() -> None:
    """Print a summary as JSON; exit code 1 if a failure ended otherwise than in one error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stage", action="append", choices=list(STAGES), help="by default all")
    arguments = parser.parse_args()
    load_libraries()
    counts, problems = Counter[str](), list[str]()
    with tempfile.TemporaryDirectory(prefix="dmole-stress-") as folder, full_folder(Path(folder, "full")) as full:
        Path(folder).chmod(0o755)
        before, _ = reference(Path(folder))
        for stage in arguments.stage or STAGES:
            expected = after(before, stage)
            for name, (prepare, prints) in failures(full).items():
                work = shutil.copytree(before[stage], Path(folder, "work-failing"))
                args = [*STAGES[stage], *(["--json"] if prints else [])]
                with read_only(work) if name == READ_ONLY else nullcontext():
                    ended = finish(start(args, work, prepare=prepare), work)
                counts[f"{name}: {'well' if ended.code == 0 else 'one error' if ended.one_error else 'strange'}"] += 1
                if ended.code != 0 and not ended.one_error:
                    problems.append(f"{stage}, {name}: ended with {ended.code}: {ended.err[-400:]}")
                if ended.code == 0 and name.startswith(("full stdout", "closed", READ_ONLY)):
                    problems.append(f"{stage}, {name}: no error")
                wrong = [file for file, content in contents(work).items() if content != expected.get(file)]
                problems += [
                    f"{stage}, {name}: {file} is incomplete or left over" for file in (*wrong, *left_over(work))
                ]
                run(STAGES[stage], work)
                problems += [f"{stage}, {name}, after the rerun: {what}" for what in differences(work, expected)]
                shutil.rmtree(work)
    print(json.dumps({"problems": problems, "ends": dict(sorted(counts.items()))}, indent=2))
    raise SystemExit(bool(problems))


if __name__ == "__main__":
    main()
