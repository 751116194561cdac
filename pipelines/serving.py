"""What it costs to use a run: `python -m pipelines.serving RUN`, on a run of the built-in stream that was evaluated.

    python -m pipelines.serving dmole-run
    python -m pipelines.serving dmole-run --only answer service        # some of: answer, file, service, memory, routing
    python -m pipelines.serving dmole-run --requests 64                # fewer requests to the service

Prints one line per figure. Every command runs in a process of its own; the expected answers are those of the run's evaluations.
`file` copies the run, evaluates its test splits after the last task without cached predictions and features, and answers the same
questions from a file.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import psutil
import torch

from dmole_cli.artifacts.evaluation import read_evaluation
from dmole_cli.artifacts.expert import ExpertFile, read_expert, write_expert
from dmole_cli.artifacts.kinds import FEATURES
from dmole_cli.cli.workspace import Workspace
from dmole_cli.experts.expert import load_expert
from dmole_cli.experts.routed import RoutedExperts
from dmole_cli.inference.answering import Asked
from dmole_cli.inference.pool import ExpertPool
from dmole_cli.methods._trained import trained_tasks
from dmole_cli.methods.base import load_method
from dmole_cli.routing.autoencoder import Autoencoder, Routers
from dmole_cli.stages.answer import answer_one, answering, question
from pipelines.stress._service import Known, Service, is_right, known_requests, open_run, post, running

CLIENTS, EXPERTS, WIDE = 16, 9, 256


def seconds(function: Callable[[], object], *, repeats: int = 1) -> list[float]:
    """Seconds of every call."""
    found = []
    for _ in range(repeats):
        begun = time.perf_counter()
        function()
        found.append(time.perf_counter() - begun)
    return found


def say(name: str, value: str) -> None:
    """Print a figure."""
    print(f"{name}: {value}", flush=True)


def dmole(*args: object) -> None:
    """Run a command."""
    subprocess.run([sys.executable, "-m", "dmole_cli", *map(str, args)], check=True, stdout=subprocess.DEVNULL)


def measure_answer(run: Path, requests: int) -> None:
    """The first answer of a process, beyond an empty Python, and the second one of the same process."""
    work = open_run(run)
    sample = work.data.samples(work.settings.tasks[0], "test")[0]
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "image.png"
        sample.images[0]().save(image)
        command = ("answer", "--run", run, "--image", image, sample.question)
        empty = min(seconds(lambda: subprocess.run([sys.executable, "-c", ""], check=True), repeats=5))
        first = seconds(lambda: dmole(*command), repeats=5)
        say(
            "first answer beyond an empty Python",
            f"{min(first) - empty:.2f} s (of {len(first)}; median {statistics.median(first):.2f})",
        )
        asked = question(sample.question, [image])
        with answering(**work.parts) as opened:
            answer_one(asked, opened)
            again = seconds(lambda: answer_one(asked, opened), repeats=20)
            encoded = opened.backbone.encode(asked, with_answer=False)
            routing = seconds(lambda: opened.route([encoded]), repeats=20)
        say("further answers in one process", f"{1000 * statistics.median(again):.0f} ms (median of {len(again)})")
        say("of which routing", f"{1000 * statistics.median(routing):.0f} ms")


def measure_file(run: Path, requests: int) -> None:
    """Questions from a file against the evaluation of the same samples, both as commands."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy = Path(shutil.copytree(run, folder / "run"))
        work = open_run(copy)
        after = trained_tasks(load_method("d-mole"), work.settings, work.run)
        rows, expected = [], []
        for task in (*work.settings.tasks, *work.settings.unseen):
            stored = work.run.evaluation("d-mole", after, task)
            answers = {answer.sample_id: answer.prediction for answer in read_evaluation(stored)[0]}
            for sample in work.data.samples(task, "test"):
                image = folder / "images" / f"{task}-{sample.sample_id.replace('/', '-')}.png"
                image.parent.mkdir(exist_ok=True)
                sample.images[0]().save(image)
                rows.append({"question": sample.question, "image": str(image)})
                expected.append(answers[sample.sample_id])
            stored.unlink()
            work.run.path(FEATURES, task=task, split="test").unlink(missing_ok=True)
            work.run.generations(task).unlink(missing_ok=True)
        (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        answers_file = folder / "answers.jsonl"
        command = (
            "answer",
            "--run",
            copy,
            "--file",
            folder / "questions.jsonl",
            "--out",
            answers_file,
            "--batch-size",
            64,
        )
        [ours] = seconds(lambda: dmole(*command))
        [theirs] = seconds(lambda: dmole("evaluate", "--run", copy, "--stage", after))
        found = [json.loads(line)["answer"] for line in answers_file.read_text(encoding="utf-8").splitlines()]
    same = sum(a == b for a, b in zip(found, expected, strict=True))
    say(
        "answer --file against evaluate",
        f"{theirs / ours:.2f} x its samples a second ({ours:.0f} s, {theirs:.0f} s); {same} of {len(rows)} answers equal",
    )


def ask(service: Service, known: Sequence[Known], clients: int) -> tuple[float, list[float], int]:
    """Seconds in all, seconds of each request, and the number of right responses."""
    connections = [service.client() for _ in range(clients)]
    latencies: list[float] = []

    def one(job: tuple[int, list[Known]]) -> int:
        right = 0
        for item in job[1]:
            begun = time.perf_counter()
            status, found = post(connections[job[0]], item.body)
            latencies.append(time.perf_counter() - begun)
            right += status == 200 and is_right(found, item)
        return right

    begun = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        right = sum(pool.map(one, [(number, list(known[number::clients])) for number in range(clients)]))
    return time.perf_counter() - begun, latencies, right


def measure_service(run: Path, requests: int) -> None:
    """Requests a second of sixteen clients and of one, and what the service adds to the model's own time."""
    work = open_run(run)
    known = known_requests(work, per_task=60)[:requests]
    with running(run, "--queue", "256") as service:
        ask(service, known[:32], CLIENTS)
        many, _, right = ask(service, known, CLIENTS)
        one, latencies, alone = ask(service, known, 1)
    ratio = f"{one / many:.2f} x ({len(known) / many:.1f} against {len(known) / one:.1f} requests a second)"
    say(f"{CLIENTS} clients against one at a time", f"{ratio}; {right} and {alone} of {len(known)} right")
    own = _own_seconds(run, known)
    overhead = [1000 * (latency - mine) for latency, mine in zip(latencies, own, strict=True)]
    say(
        "overhead of HTTP, queue and routing",
        f"{statistics.median(overhead):.1f} ms (median; a request takes {1000 * statistics.median(latencies):.0f} ms)",
    )


def _own_seconds(run: Path, known: Sequence[Known]) -> list[float]:
    """Seconds of preparation and generation of each request with its experts given, in this process."""
    from dmole_cli.data.sample import Sample
    from dmole_cli.serving.chat import parse_chat
    from dmole_cli.serving.images import ImageSources

    work, found = open_run(run), []
    sources = ImageSources(None, False, max_pixels=10**8, max_bytes=10**8, timeout=1)
    with answering(**work.parts) as opened:

        def answer(item: Known) -> None:
            chat = parse_chat(item.body)
            text, urls = chat.question()
            images = [sources.decode(sources.read(url, "image"), "image") for url in urls]
            sample = Sample("question", text, "", ("",), tuple((lambda image=image: image) for image in images))
            encoded = opened.backbone.encode(sample, with_answer=False)
            limits = work.data.card(item.task).generation
            opened.reply([Asked(encoded, experts=item.experts, limits=limits)])

        for item in known[:16]:
            answer(item)
        for item in known:
            found += seconds(lambda item=item: answer(item))
    return found


def measure_memory(run: Path, requests: int) -> None:
    """Memory of eight experts of nine that are unloaded, and the time until one is loaded again."""
    work = open_run(run)
    backbone = work.model.load()
    file = read_expert(work.run.expert(work.settings.tasks[0]))
    with tempfile.TemporaryDirectory() as name:
        for number in range(EXPERTS):
            write_expert(Path(name) / f"{number}.safetensors", _wider(file, number))
        rank = min(a.shape[0] for a, _ in file.sites.values())
        pool = ExpertPool(
            RoutedExperts(backbone.model, backbone.modality_of),
            lambda one: load_expert(Path(name) / f"{one}.safetensors"),
        )
        process = psutil.Process()
        pool.require([[str(number)] for number in range(EXPERTS)])
        pool.unload(["0"])
        pool.require([["0"]])
        before = process.memory_info().rss
        freed = sum((Path(name) / f"{number}.safetensors").stat().st_size for number in range(1, EXPERTS))
        pool.unload([str(number) for number in range(1, EXPERTS)])
        fallen = before - process.memory_info().rss
        say("memory of eight unloaded experts", f"{fallen / freed:.0%} of {freed / 1e6:.0f} MB (rank {WIDE})")
        pool.routed.close()
        path = work.run.expert(work.settings.tasks[0])
        again = ExpertPool(RoutedExperts(backbone.model, backbone.modality_of), lambda one: load_expert(path))

        def reload() -> None:
            again.unload(["0"])
            again.preload(["0"])

        say("loading an expert again", f"{1000 * statistics.median(seconds(reload, repeats=20)):.0f} ms (rank {rank})")


def _wider(file: ExpertFile, number: int) -> ExpertFile:
    """An expert of the same sites, of a rank at which its memory can be told from noise."""
    generator = torch.Generator().manual_seed(number)
    sites = {
        site: (torch.randn(WIDE, a.shape[1], generator=generator), torch.randn(b.shape[0], WIDE, generator=generator))
        for site, (a, b) in file.sites.items()
    }
    return replace(file, sites=sites)


def measure_routing(run: Path, requests: int) -> None:
    """Losses of 200 routers against those of ten, for one request and for sixteen."""
    work = open_run(run)
    backbone = work.model.load()
    _say_rounding(work)
    width = sum(part["width"] for part in backbone.feature_layout())
    torch.manual_seed(0)
    for rows in (1, 16):
        features = torch.nn.functional.normalize(torch.rand(rows, width), dim=-1)
        times = {}
        for count in (10, 200):
            routers = Routers([Autoencoder(width).requires_grad_(False) for _ in range(count)])
            routers.losses(features)
            times[count] = statistics.median(seconds(lambda r=routers, f=features: r.losses(f), repeats=100))
        more = 1000 * (times[200] - times[10]) / rows
        say(f"routing among 200 experts beyond ten, {rows} together", f"{more:.2f} ms a request")


def _say_rounding(work: Workspace) -> None:
    """The largest difference of losses between features of single samples and those that an evaluation computes."""
    samples = [sample for task in work.settings.tasks for sample in list(work.data.samples(task, "test"))[:60]]
    with answering(**work.parts) as opened:
        encoded = [opened.backbone.encode(sample, with_answer=False) for sample in samples]
        found = [torch.cat([opened.losses([one], exact=exact) for one in encoded]) for exact in (True, False)]
    most = ((found[1] - found[0]).abs() / found[0]).max().item()
    say("losses of quick features, largest relative difference", f"{most:.1e} ({len(samples)} samples)")


MEASURES: dict[str, Callable[[Path, int], None]] = {
    "answer": measure_answer,
    "file": measure_file,
    "service": measure_service,
    "memory": measure_memory,
    "routing": measure_routing,
}


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--only", nargs="+", choices=MEASURES, default=list(MEASURES))
    parser.add_argument("--requests", type=int, default=320)
    options = parser.parse_args()
    for name in options.only:
        MEASURES[name](options.run, options.requests)


if __name__ == "__main__":
    main()
