"""Runs dmole commands, each in a process of its own that starts with the libraries already imported.

Importing torch and transformers takes most of a small command's time. This program imports them once and forks for every
command; the child has its own arguments, folder, files and limits and is `python -m dmole_cli` from there on.

A request is a line of JSON on stdin: `args`, `cwd`, `out` and `err` (files for what the command says), `largest` (bytes
that a file may have, or null), `batches` (file that gets a byte for every batch that is computed, or null), `kill_at` (the
command is killed when that file has so many, before the batch is stored). The answer is a line on stdout: the exit code.
"""

import atexit
import gc
import json
import os
import resource
import runpy
import signal
import sys
from pathlib import Path

import matplotlib.backends.backend_agg
import matplotlib.backends.backend_svg
import pyarrow.parquet
import scipy.stats
import sklearn.manifold
import torch
import transformers

import dmole_cli.stages.allocate
import dmole_cli.stages.evaluate
import dmole_cli.stages.profile
import dmole_cli.stages.train_router
import dmole_cli.stages.train_task
from dmole_cli.artifacts.partial import PartialResults

# Names that transformers imports when they are asked for.
USED = (
    matplotlib.backends.backend_agg.FigureCanvasAgg,
    matplotlib.backends.backend_svg.FigureCanvasSVG,
    scipy.stats.bootstrap,
    sklearn.manifold.TSNE,
    transformers.AutoModelForImageTextToText,
    transformers.AutoProcessor,
    transformers.LlavaForConditionalGeneration,
    transformers.LlavaProcessor,
    transformers.SiglipVisionModel,
    transformers.LlamaModel,
    transformers.CLIPImageProcessorPil,
)
MODULES = (pyarrow.parquet, torch, dmole_cli)


def become(request: dict) -> None:
    os.chdir(request["cwd"])
    for number, (path, flags) in enumerate(
        [(os.devnull, os.O_RDONLY), (request["out"], os.O_WRONLY), (request["err"], os.O_WRONLY)]
    ):
        opened = os.open(path, flags | os.O_CREAT, 0o644)
        os.dup2(opened, number)
    if request["largest"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["largest"],) * 2)
    if request["batches"] is not None:
        count_batches(Path(request["batches"]), request["kill_at"])
    sys.argv = ["dmole", *request["args"]]
    code = 0
    try:
        runpy.run_module("dmole_cli", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    # Ends as an interpreter does, but for taking every imported module apart, which would last longer than the command.
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def count_batches(path: Path, kill_at: int) -> None:
    add = PartialResults.add

    def counting(self: PartialResults, number: int, result: object) -> None:
        with path.open("ab") as file:
            file.write(b".")
        if path.stat().st_size == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        add(self, number, result)

    PartialResults.add = counting  # type: ignore[method-assign]


gc.freeze()
for line in sys.stdin:
    asked = json.loads(line)
    if asked["args"][:1] in (["export"], ["import"]):
        import peft  # noqa: F401 - once, for these two commands alone
    child = os.fork()
    if child == 0:
        become(asked)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
