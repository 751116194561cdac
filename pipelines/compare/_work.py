"""Running cells by the command line tool, a process a step, so that a comparison can be killed at any moment and goes on.

A step that has begun leaves a marker `steps/<step>.json` beside its artifacts: what it is made from, and whether it is finished.
A finished step is not started again; one that was made from something else is refused, because its results are another
experiment's.
"""

from __future__ import annotations

import ast
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _plan import MAIN, Cell, order_of

import dmole_cli
from dmole_cli.artifacts.files import replacing, write_json
from dmole_cli.artifacts.run import Run
from dmole_cli.data.loading import task_name
from dmole_cli.errors import DmoleError
from dmole_cli.settings.model import DEFAULT_TASKS

PACKAGE = Path(dmole_cli.__file__).parent
# What of the configuration shapes profiles, features and routers, beside the tasks.
SHARED_SETTINGS = ("backbone", "data_root", "profile", "router")
# What evaluate does: answers, and how likely the right ones are.
WORK = ("evaluate", "likelihood")


@dataclass(frozen=True)
class Step:
    """One command of a cell.

    Attributes:
        name: of its marker.
        root: directory that the marker lies in.
        words: the subcommand with the arguments that shape its result.
        places: the arguments that only say where things are.
        made_from: what shapes its result beside the words.
    """

    name: str
    root: Path
    words: tuple[str, ...]
    places: tuple[str, ...]
    made_from: Mapping[str, Any]

    @property
    def marker(self) -> Path:
        """What it leaves."""
        return self.root / "steps" / f"{self.name}.json"

    def read(self) -> dict[str, Any]:
        """The marker, empty where it has not begun.

        Raises:
            DmoleError: it was made from something else, or the marker is damaged.
        """
        if not self.marker.exists():
            return {}
        try:
            found = json.loads(self.marker.read_text(encoding="utf-8"))
            before = {"arguments": found["words"], **found["made_from"]}
        except (ValueError, TypeError, KeyError) as error:
            raise DmoleError(f"{self.marker} cannot be read: {error!r}", "delete it and start again") from error
        now = {"arguments": list(self.words), **json.loads(json.dumps(self.made_from))}
        if before != now:
            changed = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
            message = f"{self.marker} was made from other {' and '.join(changed)}"
            raise DmoleError(message, "--force makes the chosen cells again; another folder keeps both")
        return found

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do; see `read` for the errors."""
        return bool(self.read().get("finished"))

    def run(self, lock: int) -> None:
        """Run the command; the marker says so from its begin to its end.

        Raises:
            DmoleError: the command failed; its own words, and where the rest of them is.
        """
        spent, started = self.read().get("seconds", 0.0), time.monotonic()
        marker = {"words": list(self.words), "made_from": self.made_from}
        write_json(self.marker, {**marker, "finished": False, "seconds": spent})
        command = [sys.executable, "-P", "-m", "dmole_cli", *self.words, *self.places]
        path = os.pathsep.join([str(PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        log = self.root / "logs" / f"{self.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w", encoding="utf-8") as file:
            # The child keeps the lock, so that whoever starts again waits for it when this process was killed.
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
            said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            begin = next((n for n, line in enumerate(said) if line.startswith("error:")), max(0, len(said) - 3))
            complaint = "\n  ".join(said[begin:]) or f"exit code {done.returncode}"
            raise DmoleError(f"{self.words[0]} failed: {complaint}", f"all that it said is in {log}")
        facts = {"evaluations": _evaluations(done.stdout)} if "--json" in self.words else {}
        write_json(
            self.marker, {**marker, "finished": True, "seconds": round(spent + time.monotonic() - started, 1), **facts}
        )


def _evaluations(said: str) -> str:
    """The name that `dmole evaluate --json` gave a method's evaluations."""
    return Path(json.loads(said)[0]["path"]).parts[-3]


@dataclass
class Comparison:
    """Everything that cells have in common.

    Attributes:
        folder: of the comparison.
        plan: table of the plan.
        config: table of the base configuration.
        split: what is evaluated.
        diagonal: evaluate each task after its own training and at the end only, instead of everything.
        likelihood: in the main table, ask for the likelihood of the right answers there, too.
    """

    folder: Path
    plan: Mapping[str, Any]
    config: Mapping[str, Any]
    split: str = "test"
    diagonal: bool = False
    likelihood: bool = False
    _rules: dict[str, Any] = field(default_factory=dict)

    def order(self, name: str) -> list[str]:
        """The stream in an order of the plan, as the configuration writes its tasks."""
        return order_of(self.plan, name, list(self.config.get("tasks", DEFAULT_TASKS)))

    def names(self, order: str) -> list[str]:
        """The stream in an order of the plan, by the tasks' names."""
        return [task_name(task) for task in self.order(order)]

    def config_of(self, order: str) -> Path:
        """The generated configuration of an order."""
        return self.folder / order / "dmole.toml"

    def write_configs(self) -> None:
        """Write the configurations: the base one with the tasks in each order."""
        for order in self.plan["orders"]:
            # At once or not at all: a stage that another process has started may be about to read it.
            write_lines(self.config_of(order), [toml({**self.config, "tasks": self.order(order)})])

    def rules(self, method: str) -> Any:
        """The method's own file, loaded (and torch with it).

        Raises:
            DmoleError: the file cannot be used.
        """
        if method not in self._rules:
            try:
                from dmole_cli.methods.base import load_method

                self._rules[method] = load_method(method)
            except DmoleError:
                raise
            except Exception as error:  # a newcomer's file may raise anything
                raise DmoleError(f"{source_of(method)} cannot be imported: {error!r}", "mend the file") from error
        return self._rules[method]

    def shared_steps(self, cell: Cell) -> list[Step]:
        """Profiles and routers of the whole stream, which no seed, order or method changes."""
        root = self.folder / cell.shared
        first = next(iter(self.plan["orders"]))
        places = ("--run", str(root), "--config", str(self.config_of(first)))
        made_from = {key: self.config[key] for key in SHARED_SETTINGS if key in self.config}
        made_from["tasks"] = sorted(self.order(first))
        return [
            Step("profile", root, ("profile",), places, made_from),
            Step("train-router", root, ("train-router", *cell.router), places, made_from),
        ]

    def training_steps(self, cell: Cell) -> list[Step]:
        """What cells that differ in evaluation only have in common.

        Raises:
            DmoleError: the plan gives arguments to a stage that the cell's method does not have.
        """
        rules, root = self.rules(cell.method), self.folder / cell.folder
        trains = bool(rules.trained_tasks(self.names(cell.order)))
        for stage, used in {"router": rules.uses_routers, "allocate": rules.uses_allocation, "train": trains}.items():
            if (words := getattr(cell, stage)) and not used:
                message = f"{cell.label} gives {stage} {' '.join(words)}, but {cell.method} has no such stage"
                raise DmoleError(
                    message, "give them to a stage that it has (methods without allocate take train --budget)"
                )
        steps = []
        if rules.uses_allocation:
            words = ("allocate", "--method", cell.method, *cell.allocate)
            steps.append(Step(f"allocate-{cell.method}", root, words, self._places(cell), self._made_from(cell)))
        if trains:
            words = ("train-task", "--method", cell.method, "--seed", str(cell.seed), *cell.train)
            steps.append(Step(f"train-task-{cell.method}", root, words, self._places(cell), self._made_from(cell)))
        return steps

    def evaluation_steps(self, cell: Cell) -> list[Step]:
        """What says that a cell is finished; known without loading the method."""
        name = cell.label if cell.evaluate else cell.method
        made_from = {**self._made_from(cell), "training": [*cell.router, *cell.allocate, *cell.train]}
        split = () if self.split == "test" else ("--split", self.split)
        words = ("evaluate", "--method", cell.method, *split, *cell.evaluate, "--json", "--stage")
        places, root = self._places(cell), self.folder / cell.folder
        ends = ("diagonal", "--stage", str(len(self.names(cell.order))))
        steps = [Step(f"evaluate-{name}", root, (*words, *(ends if self.diagonal else ("all",))), places, made_from)]
        if self.likelihood and cell.group == MAIN:
            # Stage 0 is all that zero-shot has, and the same for everybody else.
            asked = (*words, "0", "--stage", *ends, "--likelihood")
            steps.append(Step(f"likelihood-{name}", root, asked, places, made_from))
        return steps

    def _places(self, cell: Cell) -> tuple[str, ...]:
        run, shared = self.folder / cell.folder, self.folder / cell.shared
        return ("--run", str(run), "--config", str(self.config_of(cell.order)), "--shared", str(shared))

    def _made_from(self, cell: Cell) -> dict[str, Any]:
        table = {key: value for key, value in self.config.items() if key != "method"}
        own = self.config.get("method", {}).get(cell.method, {})
        made = {"tasks": self.order(cell.order), "configuration": table, "options": own, "code": code_of(cell.method)}
        return json.loads(json.dumps(made))

    def finished(self, cell: Cell) -> bool:
        """Whether nothing is left to do for a cell."""
        return all(step.finished for step in self.evaluation_steps(cell))

    def seconds(self, cell: Cell) -> float:
        """What the steps of a finished cell took on the clock; another look at experts that are there trains none."""
        names = [step.name for step in self.evaluation_steps(cell)]
        names += [] if cell.evaluate else [f"allocate-{cell.method}", f"train-task-{cell.method}"]
        markers = [self.folder / cell.folder / "steps" / f"{name}.json" for name in names]
        return sum(json.loads(path.read_text(encoding="utf-8"))["seconds"] for path in markers if path.exists())

    def work(self, cell: Cell) -> Iterator[str]:
        """Do what is left of a cell; gives the name of each step before it starts.

        Raises:
            DmoleError: a step fails, or what is there was made from something else.
        """
        rules = self.rules(cell.method)
        steps = [*self.training_steps(cell), *self.evaluation_steps(cell)]
        if rules.uses_allocation or rules.uses_routers:
            self._borrow("shared", cell.shared, ("profiles", "features", "costs/profile"))
            steps = [*self.shared_steps(cell), *steps]
        if cell.trained_apart:
            # An answer's key holds all that shapes it, so those of the pretrained backbone are the same here.
            self._borrow(f"{cell.order}/seed-{cell.seed}", cell.folder, ("generations",))
        for step in steps:
            with locked(step.marker.with_suffix(".lock")) as lock:
                if not step.finished:
                    yield step.name
                    step.run(lock)

    def _borrow(self, source: str, target: str, folders: Sequence[str]) -> None:
        """Start a directory of a variant with what is the same in the usual one."""
        for name in folders:
            there, here = self.folder / source / name, self.folder / target / name
            if source != target and there.is_dir() and not here.exists():
                partial = here.with_name(f"{here.name}.partial")
                shutil.rmtree(partial, ignore_errors=True)
                # Hidden files are what others are just writing.
                shutil.copytree(there, partial, ignore=shutil.ignore_patterns(".*"))
                partial.rename(here)

    def forget(self, cell: Cell) -> None:
        """Delete what was made for a cell, but no answers: an answer's key holds all that shapes it."""
        root, method = self.folder / cell.folder, cell.method
        run = Run(root, self.folder / cell.shared)
        if not cell.evaluate:
            for task in self.names(cell.order):
                for path in (run.allocation(task, method), run.expert(task, method), run.memory(task, method)):
                    path.unlink(missing_ok=True)
        for marker in sorted((root / "steps").glob("*.json")):
            found = json.loads(marker.read_text(encoding="utf-8"))
            words = found.get("words", [])
            if method not in words or (cell.evaluate and marker.stem != f"evaluate-{cell.label}"):
                continue
            if name := found.get("evaluations"):
                for folder in (run.evaluations(self.split), run.likelihoods(self.split)):
                    shutil.rmtree(folder / name, ignore_errors=True)
                # Seconds of an evaluation are added up, because it may be done bit by bit.
                for work in WORK:
                    shutil.rmtree(run.cost(cost_of(name, self.split, work=work), "task").parent, ignore_errors=True)
            marker.unlink()


def cost_of(evaluations: str, split: str, *, work: str = WORK[0]) -> str:
    """The name that the seconds of a method's evaluations or likelihoods have."""
    return "-".join([work, *([] if split == "test" else [split]), evaluations])


def source_of(method: str) -> Path:
    """The method's file."""
    return PACKAGE / "methods" / f"{method.replace('-', '_')}.py"


def code_of(method: str) -> str:
    """Digest of what a method's file does, and what it imports of its folder: comments, docstrings and layout may change."""
    found: dict[Path, str] = {}
    waiting = [source_of(method)]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (OSError, SyntaxError) as error:
            raise DmoleError(f"{path} cannot be read: {error}", "mend the file") from error
        modules = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        waiting += [path.with_name(f"{m.rpartition('.')[2]}.py") for m in modules if m.startswith("dmole_cli.methods.")]
        found[path] = _doing(tree)
    return hashlib.sha256(json.dumps(sorted((path.name, text) for path, text in found.items())).encode()).hexdigest()[
        :16
    ]


def _doing(tree: ast.Module) -> str:
    """A module without its docstrings."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)


def toml(table: Mapping[str, Any], *, path: str = "") -> str:
    """Write a table as TOML; numbers, texts, flags and lists look as in JSON there."""
    values = [f"{key} = {json.dumps(value)}" for key, value in table.items() if not isinstance(value, Mapping)]
    lines = [f"[{path}]", *values] if path and values else values
    tables = [toml(v, path=f"{path}.{key}" if path else key) for key, v in table.items() if isinstance(v, Mapping)]
    return "\n".join(["\n".join(lines), "", *tables]) if lines else "\n".join(tables)


def write_lines(path: Path, lines: Sequence[str]) -> None:
    """Write a text."""
    with replacing(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


@contextmanager
def locked(path: Path) -> Iterator[int]:
    """Hold a file's lock; waits for whoever holds it. Gives its descriptor."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{path}: waiting for another process that works on this", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()
