"""The page of `dmole report --html`: seconds, size and peak memory, for made-up evaluations.

    python pipelines/bench/run.py --only pages

- a comparison of 17 methods (all of them, and another routing) with three seeds and two orders of five tasks, 400 test samples
  each;
- a run of 20 tasks with 5,000 test samples each, evaluated after every task.

Each page is written by a process of its own, whose seconds and memory include the start of Python.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dmole_cli import catalog
from dmole_cli.artifacts.evaluation import Answer
from dmole_cli.artifacts.kinds import D_MOLE, EVALUATION
from dmole_cli.artifacts.provenance import Header
from dmole_cli.artifacts.run import Run
from dmole_cli.artifacts.tables import write_table
from pipelines.bench._timing import Row, counted, failed

ROOT = Path(__file__).parents[2]
METHODS = (*catalog.names("methods"), f"{D_MOLE}@oracle")
WORDS = ("circle", "square", "red", "blue", "left", "right", "seven", "none")


@dataclass(frozen=True)
class Size:
    """Of made-up evaluations.

    Attributes:
        tasks, samples: numbers of them; samples are those of a task.
        methods: labels.
        seeds, orders: of a comparison; no orders for a run.
    """

    tasks: int
    samples: int
    methods: Sequence[str]
    seeds: int = 1
    orders: Sequence[str] = ()


COMPARISON = Size(5, 400, METHODS, seeds=3, orders=("A", "B"))
LONG = Size(20, 5000, (D_MOLE,))
TINY = {"comparison": Size(2, 8, ("seq-ft", D_MOLE), seeds=2, orders=("A", "B")), "long run": Size(3, 20, (D_MOLE,))}
# seconds, megabytes of the page, megabytes of memory
TARGETS: dict[str, tuple[float | None, float, float | None]] = {
    "comparison": (60, 10, None),
    "long run": (None, 10, 1000),
}


def compare(*, rounds: int | None = None, tiny: bool = False) -> Iterator[Row]:
    """Each page once."""
    for name, size in (TINY if tiny else {"comparison": COMPARISON, "long run": LONG}).items():
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "made-up"
            (write_comparison if size.orders else write_run)(root, size)
            yield from _measured(name, root, size)


def _measured(name: str, root: Path, size: Size) -> Iterator[Row]:
    page, tasks = root.parent / "page.html", names(size)
    (root.parent / "dmole.toml").write_text(f"tasks = {json.dumps(tasks)}\nunseen = []\n", encoding="utf-8")
    for task in tasks:
        card = 'format = "llava"\nprompt = "{question}"\nmetric = "exact_match"\n[data]\ntrain = "missing.json"\n'
        (root.parent / task).write_text(card + 'test = "missing.json"\n', encoding="utf-8")
    command = [sys.executable, "-m", "dmole_cli", "report", "--html", str(page), "--run", str(root)]
    started = time.perf_counter()
    done = subprocess.Popen(command, cwd=root.parent, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=sys.stderr)
    _, status, usage = os.wait4(done.pid, 0)
    seconds, targets = time.perf_counter() - started, TARGETS[name]
    if status:
        yield failed(f"page of a {name}: seconds", f"the command ended with {os.waitstatus_to_exitcode(status)}")
        return
    yield counted(f"page of a {name}: seconds", seconds, targets[0])
    yield counted(f"page of a {name}: megabytes", page.stat().st_size / 1e6, targets[1])
    yield counted(f"page of a {name}: peak memory in megabytes", _bytes(usage) / 1e6, targets[2])


def _bytes(usage: resource.struct_rusage) -> int:
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def names(size: Size) -> list[str]:
    """Cards of the tasks."""
    return [f"task{number:02}.toml" for number in range(size.tasks)]


def write_comparison(root: Path, size: Size) -> None:
    """Write the folder of a comparison: its plan, and a run directory for each order and seed."""
    tasks = [name.removesuffix(".toml") for name in names(size)]
    orders = {name: tasks[::-1] if index else tasks for index, name in enumerate(size.orders)}
    cells = []
    for order, stream in orders.items():
        for seed in range(size.seeds):
            run = Run(root / order / f"seed-{seed}")
            for method in size.methods:
                last = _write_method(run, method, stream, size.samples, seed=seed)
                result = last.relative_to(root).as_posix()
                cells.append({"label": method, "method": method, "order": order, "seed": seed, "result": result})
    root.joinpath("plan.json").write_text(json.dumps({"orders": orders, "cells": cells}), encoding="utf-8")


def write_run(root: Path, size: Size) -> None:
    """Write a run directory."""
    tasks = [name.removesuffix(".toml") for name in names(size)]
    for method in size.methods:
        _write_method(Run(root), method, tasks, size.samples, seed=0)


def _write_method(run: Run, method: str, tasks: Sequence[str], samples: int, *, seed: int) -> Path:
    """Evaluations of all tasks after every task; gives the last file that was written."""
    from dmole_cli.reports.evaluations import method_of

    protocol, path = method_of(method).protocol, Path()
    random = np.random.default_rng([seed, len(method)])
    stages = {"zero-shot": [0], "joint": [len(tasks)]}.get(protocol, list(range(len(tasks) + 1)))
    for after in stages:
        for index, task in enumerate(tasks):
            if protocol == "per-task" and after not in (0, index + 1):
                continue
            learned = [task] if protocol == "per-task" and after else list(tasks[:after])
            table = _answers(random, tasks[:after], index, samples)
            header = Header.of(EVALUATION, backbone="made-up", settings={"metric": "exact_match", "learned": learned})
            path = run.evaluation(method, after, task)
            write_table(path, table, table.schema, header)
    return path


def _answers(random: Any, learned: Sequence[str], index: int, samples: int) -> pa.Table:
    """Answers of a task: mostly right once it was learned, its own expert mostly active."""
    known = index < len(learned)
    right = random.random(samples) < (0.8 if known else 0.2)
    losses = random.lognormal(0, 0.3, (samples, len(learned)))
    if known:
        losses[:, index] *= 0.1
    words = random.integers(len(WORDS), size=(samples, 2))
    rows = {
        "sample_id": [str(row) for row in range(samples)],
        "question": [f"What is shown in image {row}?" for row in range(samples)],
        "prediction": [WORDS[a if one else b] for one, (a, b) in zip(right, words, strict=True)],
        "references": [[WORDS[a]] for a, _ in words],
        "score": right.astype(float),
        "active": [[learned[i] for i in np.flatnonzero(row < 0.3)[:2]] for row in losses],
        "losses": losses.tolist(),
        "details": ["{}"] * samples,
        "images": [[f"{row}.png"] for row in range(samples)],
    }
    empty = Answer("", "", "", [], 0.0, [], [], "")
    assert list(rows) == list(asdict(empty))
    text, real = pa.string(), pa.float64()
    kinds = (text, text, text, pa.list_(text), real, pa.list_(text), pa.list_(real), text, pa.list_(text))
    return pa.table(rows, pa.schema(list(zip(rows, kinds, strict=True))))
