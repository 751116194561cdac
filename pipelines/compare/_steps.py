"""The steps of an experiment: `dmole` commands, each with a marker file that makes a comparison resumable.

A step writes a marker `steps/<name>.json` beside its artifacts when it starts and when it has finished: what its result is made
from, and whether it is finished. A finished step is skipped; one whose inputs have changed since is an error, because its result
belongs to another experiment.
"""

from __future__ import annotations

import ast
import fcntl
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dmole_cli
from dmole_cli.artifacts.files import write_json
from dmole_cli.errors import DmoleError

PACKAGE = Path(dmole_cli.__file__).parent


@dataclass(frozen=True)
class Step:
    """One command of an experiment.

    Attributes:
        name: of the marker.
        root: directory of the marker.
        arguments: the subcommand and the arguments that shape its result.
        paths: the arguments that only say where files are.
        made_from: what shapes the result beside the arguments.
    """

    name: str
    root: Path
    arguments: tuple[str, ...]
    paths: tuple[str, ...]
    made_from: Mapping[str, Any]

    @property
    def marker(self) -> Path:
        """Path of the marker."""
        return self.root / "steps" / f"{self.name}.json"

    def read(self) -> dict[str, Any]:
        """The marker, empty if the step has not started.

        Raises:
            DmoleError: the step was made from something else, or the marker is damaged.
        """
        if not self.marker.exists():
            return {}
        try:
            found = json.loads(self.marker.read_text(encoding="utf-8"))
            before = {"arguments": found["words"], **found["made_from"]}
        except (ValueError, TypeError, KeyError) as error:
            raise DmoleError(f"{self.marker} cannot be read: {error!r}", "delete it and start again") from error
        now = {"arguments": list(self.arguments), **json.loads(json.dumps(self.made_from))}
        if before != now:
            changed = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
            message = f"{self.marker} was made from other {' and '.join(changed)}"
            raise DmoleError(message, "pass --force to rerun the chosen experiments, or use another folder")
        return found

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do; raises as `read` does."""
        return bool(self.read().get("finished"))

    def run(self, lock: int) -> None:
        """Run the command and write the marker before and after it.

        Args:
            lock: descriptor of the step's lock, see `locked`.

        Raises:
            DmoleError: the command failed; the message has its error and the path of its log.
        """
        spent, started = self.read().get("seconds", 0.0), time.monotonic()
        marker = {"words": list(self.arguments), "made_from": self.made_from}
        write_json(self.marker, {**marker, "finished": False, "seconds": spent})
        log = self.root / "logs" / f"{self.name}.log"
        output = self._execute(log, lock)
        facts = {"evaluations": _evaluations(output)} if "--json" in self.arguments else {}
        seconds = round(spent + time.monotonic() - started, 1)
        write_json(self.marker, {**marker, "finished": True, "seconds": seconds, **facts})

    def _execute(self, log: Path, lock: int) -> str:
        """Run the command with stderr in `log`; returns its stdout."""
        command = [sys.executable, "-P", "-m", "dmole_cli", *self.arguments, *self.paths]
        path = os.pathsep.join([str(PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w", encoding="utf-8") as file:
            # The child process inherits the lock: if this process is killed, the next one waits for the child to end.
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                check=False,
                pass_fds=(lock,),
                env={**os.environ, "PYTHONPATH": path},
            )
        if done.returncode:
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            first = next((n for n, line in enumerate(lines) if line.startswith("error:")), max(0, len(lines) - 3))
            reason = "\n  ".join(lines[first:]) or f"exit code {done.returncode}"
            raise DmoleError(f"{self.arguments[0]} failed: {reason}", f"the complete log is {log}")
        return done.stdout


def _evaluations(output: str) -> str:
    """The name of the evaluations in the output of `dmole evaluate --json`."""
    return Path(json.loads(output)[0]["path"]).parts[-3]


def source_of(method: str) -> Path:
    """The method's file."""
    return PACKAGE / "methods" / f"{method.replace('-', '_')}.py"


def code_of(method: str) -> str:
    """Digest of a method's code and of what it imports from its folder; independent of comments, docstrings and layout.

    Raises:
        DmoleError: a file is missing or not Python.
    """
    found: dict[Path, str] = {}
    waiting = [source_of(method)]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (OSError, SyntaxError) as error:
            raise DmoleError(f"{path} cannot be read: {error}", "fix the file") from error
        modules = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        waiting += [path.with_name(f"{m.rpartition('.')[2]}.py") for m in modules if m.startswith("dmole_cli.methods.")]
        found[path] = _without_docstrings(tree)
    content = json.dumps(sorted((path.name, text) for path, text in found.items()))
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _without_docstrings(tree: ast.Module) -> str:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)


@contextmanager
def locked(path: Path) -> Iterator[int]:
    """Hold the lock of a file, waiting until it is free; yields its descriptor."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{path}: waiting for another process that is running this step", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()
