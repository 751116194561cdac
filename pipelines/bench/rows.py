"""Peak memory by number of rows: reading, digesting and iterating a training file of 10,000, 100,000 and 1,000,000 records.

    python pipelines/bench/rows.py                      # prints a line for each, takes minutes
    python pipelines/bench/rows.py --rows 2000 40000    # other sizes
    python pipelines/bench/rows.py --start              # the start of `train-task`, until the first batch is ready

Each size runs in its own process; records have LLaVA's format, as JSON lines or as one array, and share a few images. The printed
value is the process's peak memory (VmHWM), once for the first read, which converts the file, and once for a read from the
cache. The first line is the memory of the libraries alone.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

IMAGES = 64
SIZES = (10_000, 100_000, 1_000_000)
CARD = (
    'format = "llava"\nprompt = "{question} Answer in a word."\nmetric = "exact_match"\n[data]\ntrain = "train.json"\n'
)
if __name__ == "__main__":  # as a script
    sys.path[0] = str(Path(__file__).parents[2])


def write_task(folder: Path, rows: int, *, array: bool = False) -> Path:
    """Write images, `rows` records and their card; gives the card's path."""
    from PIL import Image

    for number in range(IMAGES):
        Image.new("RGB", (24, 24), (number, 2 * number, 3 * number)).save(folder / f"{number}.png")
    with (folder / "train.json").open("w", encoding="utf-8") as file:
        file.write("[\n" if array else "")
        for row in range(rows):
            question = f"<image>\nWhat is the number of row {row}, asked in a sentence of about the usual length of a question?"
            turns = [{"from": "human", "value": question}, {"from": "gpt", "value": f"row {row}"}]
            end = ",\n" if array and row < rows - 1 else "\n"
            file.write(json.dumps({"id": str(row), "image": f"{row % IMAGES}.png", "conversations": turns}) + end)
        file.write("]\n" if array else "")
    card = folder / "rows.toml"
    card.write_text(CARD, encoding="utf-8")
    return card


def read(card: str, *, keep: bool = False) -> dict[str, Any]:
    """Read, digest and iterate a task; gives its digest, times and peak memory in bytes. `keep` holds all samples in a list."""
    from dmole_cli.artifacts.image_digests import ImageDigests
    from dmole_cli.data.card import load_card
    from dmole_cli.data.digests import data_digest
    from dmole_cli.data.loading import samples

    started = time.perf_counter()
    found: dict[str, Any] = {"rows": 0, "libraries": peak()}
    if card:
        rows = list(samples(load_card(card), "train")) if keep else samples(load_card(card), "train")
        found["digest"] = data_digest(rows, ImageDigests(Path(card).parent / "images.sqlite"))
        found["rows"] = sum(1 for row in rows if row.answer and row.files)
    return {**found, "seconds": time.perf_counter() - started, "peak": peak()}


class _Started(Exception):
    """The first batch of a training run is ready."""


def start(card: str, *, since: float) -> dict[str, Any]:
    """Begin to train on the embedded backbone; gives seconds since a time, processor time and peak memory at the first step."""
    from dmole_cli.artifacts.run import Run
    from dmole_cli.cli.workspace import workspace
    from dmole_cli.settings.model import Settings
    from dmole_cli.stages.train_task import train_task

    def until_first(batches: Any, label: str, total: int) -> Iterator[Any]:
        for _ in batches:
            raise _Started
        yield from ()

    folder = Path(card).parent
    work = workspace(Settings(tasks=(card,), unseen=(), device="cpu"), Run(folder / "run"))
    with suppress(_Started):
        train_task("rows", **work.parts, method="finetune", track=until_first)
    return {"seconds": time.time() - since, "cpu": sum(os.times()[:2]), "peak": peak()}


def peak() -> int:
    """Peak resident memory of this process, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # of this program alone; getrusage may report the peak of the process that it was forked from
        [line] = [line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measured(rows: int, *, array: bool = False, times: int = 2, how: str = "--read") -> Iterator[dict[str, Any]]:
    """The results of `read`, or with `--start` of `start`, in a first and in further processes, for a task of so many rows."""
    with tempfile.TemporaryDirectory() as folder:
        card = write_task(Path(folder), rows, array=array) if rows else ""
        for _ in range(times if rows else 1):
            command = [sys.executable, __file__, "--child", str(card), how, "--since", str(time.time())]
            env = {**os.environ, "DMOLE_CACHE": f"{folder}/cache", "OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
            yield json.loads(done.stdout)


def compare(*, rounds: int | None = None, tiny: bool = False) -> list[Any]:
    """Peak memory for the largest number of rows over that for the smallest."""
    from pipelines.bench._timing import counted

    least, most = (2_000, 40_000) if tiny else (SIZES[0], SIZES[-1])
    peaks = [max(found["peak"] for found in measured(rows)) for rows in (least, most)]
    return [counted(f"peak memory: {most:,} rows over {least:,}", peaks[1] / peaks[0], 1.1)]


def show_starts(sizes: Sequence[int]) -> None:
    """Print a line for each size."""
    head = "peak MB | seconds | of processor time"
    print(f"| rows | file | first time: {head} | again: {head} |\n|---|---|---|---|---|---|---|---|")
    for rows in sizes:
        for array in (False, True):
            columns = [
                f"{found['peak'] / 2**20:.0f} | {found['seconds']:.0f} | {found['cpu']:.0f}"
                for found in measured(rows, array=array, how="--start")
            ]
            print(f"| {rows:,} | {'array' if array else 'lines'} | {' | '.join(columns)} |", flush=True)


def main() -> None:
    """Print a line for each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=list(SIZES), help="numbers of rows")
    parser.add_argument("--start", action="store_true", help="measure the start of train-task")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--read", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--keep", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--since", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        found = start(options.child, since=options.since) if options.start else read(options.child, keep=options.keep)
        print(json.dumps(found))
        return
    if options.start:
        show_starts(options.rows)
        return
    print("| rows | file | first time: peak MB | seconds | again: peak MB | seconds |\n|---|---|---|---|---|---|")
    [bare] = measured(0)
    print(f"| 0 | | {bare['peak'] / 2**20:.0f} | | | |", flush=True)
    for rows in options.rows:
        for array in (False, True):
            both = list(measured(rows, array=array))
            columns = [f"{found['peak'] / 2**20:.0f} | {found['seconds']:.0f}" for found in both]
            print(f"| {rows:,} | {'array' if array else 'lines'} | {' | '.join(columns)} |", flush=True)


if __name__ == "__main__":
    main()
