"""`dmole serve`: the answers of an evaluation for many clients at once, limits, errors, and experts that come and go."""

import base64
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import openai
import pytest
import tiny
import torch
from PIL import Image

from dmole_cli.artifacts.evaluation import read_evaluation
from dmole_cli.artifacts.run import Run
from dmole_cli.artifacts.usage import Usage

TASKS = ("colours", "halves", "brightness")  # the last one was never trained
KEY = "secret"


@dataclass
class Running:
    """A service, and the folder that it was started in."""

    process: subprocess.Popen
    url: str
    folder: Path

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=KEY, max_retries=0)

    def send(self, path: str, body: Any = None, *, key: str = KEY, **headers: str) -> tuple[int, Any]:
        """Status and content of a response; JSON where it is that."""
        content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}{path}", content, {"Authorization": f"Bearer {key}", **headers})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                status, text = answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            status, text = error.code, error.read().decode()
        return status, json.loads(text) if text.startswith("{") else text

    def chat(self, **changes: Any) -> tuple[int, Any]:
        return self.send("/v1/chat/completions", {"model": "auto", "messages": user("What?")} | changes)


def user(*content: Any) -> list[dict]:
    """The messages of a question; one text is sent as such."""
    return [{"role": "user", "content": content[0] if len(content) == 1 else list(content)}]


def text(value: str) -> dict:
    return {"type": "text", "text": value}


def image(source: Path | bytes | str) -> dict:
    if not isinstance(source, str):
        content = source if isinstance(source, bytes) else source.read_bytes()
        source = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    return {"type": "image_url", "image_url": {"url": source}}


def png(width: int, height: int) -> bytes:
    found = BytesIO()
    Image.new("1", (width, height)).save(found, "png")
    return found.getvalue()


@pytest.fixture(scope="module")
def service(finished, tmp_path_factory) -> Iterator[Running]:
    """A service on the finished stream without its second expert, which a test brings back."""
    folder = shutil.copytree(finished, tmp_path_factory.mktemp("serve") / "stream")
    Run(folder / "dmole-run").expert("halves").rename(folder / "away")
    limits = (
        "--max-body",
        1,
        "--max-pixels",
        1,
        "--max-images",
        2,
        "--image-folder",
        "tasks",
        "--longest-question",
        200,
    )
    command = ["serve", "--port", 0, "--json", "--watch", *limits]
    process = subprocess.Popen(
        [sys.executable, "-m", "dmole_cli", *map(str, command)],
        cwd=folder,
        env=tiny.environment(DMOLE_API_KEY=KEY),
        stdout=subprocess.PIPE,
        stderr=(folder / "log").open("w"),
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, (folder / "log").read_text()
    text = line + "".join(iter(process.stdout.readline, "}\n")) + "}" if not line.strip().endswith("}") else line
    running = Running(process, json.loads(text)["url"], folder)
    yield running
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def evaluated(service) -> list[dict]:
    """Every test sample with what its evaluations have found after no, one and two tasks."""
    rows = []
    for task in TASKS:
        stages = [read_evaluation(Run(service.folder / "dmole-run").evaluation("d-mole", s, task))[0] for s in range(3)]
        rows += [
            {"question": row[0].question, "image": service.folder / "tasks" / task / "pictures" / row[0].images[0]}
            | {"stages": row}
            for row in zip(*stages, strict=True)
        ]
    return rows


def ask(service: Running, rows: list[dict], **options: Any) -> list[Any]:
    """The answers to rows, by as many clients as there are rows."""
    client = service.client()

    def one(row: dict) -> Any:
        messages: Any = user(image(row["image"]), text(row["question"]))
        return client.chat.completions.create(messages=messages, max_tokens=4, **options)

    with ThreadPoolExecutor(len(rows)) as clients:
        return list(clients.map(one, rows))


def check(service: Running, rows: list[dict], stage: int) -> None:
    """Answers and routes of all rows are those of their evaluations."""
    for row, found in zip(rows, ask(service, rows, model="auto"), strict=True):
        expected = row["stages"][stage]
        assert found.choices[0].message.content == expected.prediction
        assert found.dmole["experts"] == list(expected.active)
        assert list(found.dmole["losses"].values()) == pytest.approx(expected.losses, rel=1e-4)


def test_new_experts_are_taken_up_without_a_restart(service, evaluated):
    assert [model.id for model in service.client().models.list()] == ["auto", "backbone", "colours"]
    check(service, evaluated, 1)
    (service.folder / "away").rename(Run(service.folder / "dmole-run").expert("halves"))
    for _ in range(200):
        if "halves" in [model.id for model in service.client().models.list()]:
            break
        time.sleep(0.1)
    check(service, evaluated, 2)
    status, page = service.send("/metrics", key="")
    assert status == 200 and "dmole_reloads_total 1.0" in page and 'dmole_activations_total{expert="halves"}' in page
    counts = Usage(Run(service.folder / "dmole-run").usage("d-mole")).counts()
    active = [row["stages"][stage].active for stage in (1, 2) for row in evaluated]
    assert counts.requests == len(active) and counts.without_expert == active.count([])


def test_models_that_are_not_routed(service, evaluated):
    rows = evaluated[::4]
    for row, found in zip(rows, ask(service, rows, model="backbone"), strict=True):
        assert found.choices[0].message.content == row["stages"][0].prediction and found.dmole["experts"] == []
    for found in ask(service, rows, model="colours"):
        assert found.dmole["experts"] == ["colours"] and found.dmole["losses"] == {}
    assert service.chat(model="missing")[0] == 404


def test_a_stream_is_the_answer_in_pieces(service, evaluated):
    row = evaluated[0]
    [whole] = ask(service, [row], model="auto")
    [stream] = ask(service, [row], model="auto", stream=True, stream_options={"include_usage": True})
    *chunks, last = list(stream)
    assert "".join(part.choices[0].delta.content or "" for part in chunks) == whole.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].dmole == whole.dmole and last.usage == whole.usage
    assert whole.usage.completion_tokens <= 4


def test_unloaded_experts_are_loaded_again(service, evaluated):
    check(service, evaluated, 2)
    status, found = service.send("/v1/experts/unload", {"experts": ["colours"]})
    assert (status, found) == (200, {"unloaded": ["colours"], "loaded": ["halves"]})
    assert service.send("/v1/experts/unload", {"idle": 10_000})[1]["unloaded"] == []
    check(service, evaluated, 2)
    assert service.send("/v1/experts/load", {"experts": ["halves"]})[1]["loaded"] == ["halves", "colours"]
    assert service.send("/v1/experts/unload", {"experts": ["missing"]})[0] == 404
    assert service.send("/v1/experts/unload", {})[0] == 400


BODIES: dict[str, tuple[dict, str]] = {
    "temperature": ({"temperature": 0.7}, "answers are greedy"),
    "several answers": ({"n": 2}, "one answer"),
    "tools": ({"tools": []}, "tools is not supported"),
    "system": ({"messages": [{"role": "system", "content": "x"}]}, "expected the role `user`"),
    "conversation": ({"messages": user("a") + user("b")}, "exactly one message"),
    "no messages": ({"messages": []}, "exactly one message"),
    "empty": ({"messages": user("  ")}, "the question is empty"),
    "long": ({"messages": user("red " * 300)}, "more than 200 tokens"),
    "longer": ({"messages": user("x" * 900_000)}, "more than 200 tokens"),
    "long answer": ({"max_tokens": 100_000}, "maximum of 512"),
    "local file": ({"messages": user(text("?"), image("file:///etc/passwd"))}, "only files below the folder of images"),
    "dots": ({"messages": user(text("?"), image("file:../dmole.toml"))}, "only files below the folder of images"),
    "encoded dots": ({"messages": user(text("?"), image("file:%2e%2e/dmole.toml"))}, "only files below the folder"),
    "no file": ({"messages": user(text("?"), image("file:missing.png"))}, "missing or is not a regular file"),
    "url": ({"messages": user(text("?"), image("http://127.0.0.1:1/a.png"))}, "fetches no URLs"),
    "scheme": ({"messages": user(text("?"), image("ftp://example.org/a.png"))}, "expected a data URI"),
    "not base64": ({"messages": user(text("?"), image("data:image/png;base64,@@"))}, "not valid base64"),
    "not an image": ({"messages": user(text("?"), image(b"GIF89a"))}, "cannot open an image of image 1"),
    "bomb": ({"messages": user(text("?"), image(png(3000, 3000)))}, "pixels are more than 1000000"),
    "many images": ({"messages": user(text("?"), *[image(png(8, 8))] * 3)}, "3 images are more than 2"),
    "markers": ({"messages": user(text("<image> or <image>?"), image(png(8, 8)))}, "image"),
}


@pytest.mark.parametrize("name", BODIES)
def test_wrong_requests_have_one_clear_error(service, name):
    changes, message = BODIES[name]
    status, found = service.chat(**changes)
    assert status == 400 and message in found["error"]["message"] and found["error"]["type"] == "invalid_request_error"


def test_other_wrong_requests(service):
    assert service.send("/v1/chat/completions", b"{")[0] == 400
    assert service.send("/v1/chat/completions", b"[" * 5000)[0] == 400
    assert service.send("/v1/chat/completions", b"[]")[0] == 400
    assert service.send("/v1/chat/completions", b'{"model": "\\ud800"}')[0] == 400
    assert service.send("/v1/chat/completions", b"x" * (1 << 21))[0] == 413
    assert service.send("/v1/chat/completions", {"model": "auto"}, key="wrong")[0] == 401
    assert service.send("/v1/nothing")[0] == 404 and service.send("/v1/chat/completions")[0] == 405
    assert service.send("/healthz", key="") == (200, {"status": "ok"})
    assert "Traceback" not in (service.folder / "log").read_text()


def test_a_file_below_the_folder_of_images(service, evaluated):
    row = evaluated[0]
    name = row["image"].relative_to(service.folder / "tasks")
    status, found = service.chat(messages=user(image(f"file:{name}"), text(row["question"])), max_tokens=4)
    assert status == 200 and found["choices"][0]["message"]["content"] == row["stages"][2].prediction
    (service.folder / "tasks" / "link.png").symlink_to(service.folder / "dmole.toml")
    status, found = service.chat(messages=user(text("?"), image("file:link.png")))
    assert status == 400 and "only files below" in found["error"]["message"]


def test_a_replaced_expert_is_not_used_with_the_old_routers(service, evaluated):
    path = Run(service.folder / "dmole-run").expert("colours")
    service.send("/v1/experts/unload", {"experts": ["colours"]})
    kept = path.read_bytes()
    path.write_bytes(Run(service.folder / "dmole-run").expert("halves").read_bytes())
    status, found = service.chat(model="colours")
    assert status == 503 and "its log says why" in found["error"]["message"]
    path.write_bytes(kept)
    assert service.chat(model="colours", max_tokens=2)[0] == 200
    assert "has changed since the routers were read" in (service.folder / "log").read_text()


def test_a_signal_ends_it_after_its_requests(service, evaluated):
    def accepted() -> float:
        page = service.send("/metrics")[1]
        return sum(map(float, re.findall(r"^dmole_requests(?:_total{.*}|_in_progress) (\S+)", page, re.MULTILINE)))

    rows = evaluated[:12]
    before = accepted()
    with ThreadPoolExecutor(1) as clients:
        answers = clients.submit(ask, service, rows, model="auto")
        while accepted() < before + len(rows):
            assert not answers.done() or answers.result()
        os.kill(service.process.pid, signal.SIGTERM)
        for row, found in zip(rows, answers.result(), strict=True):
            assert found.choices[0].message.content == row["stages"][2].prediction
    assert service.process.wait(timeout=30) == 0
    assert "all accepted requests were answered" in (service.folder / "log").read_text()


def test_urls_are_fetched_where_they_are_allowed(tmp_path):
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    from dmole_cli.serving.errors import RequestError
    from dmole_cli.serving.images import ImageSources

    (tmp_path / "a.png").write_bytes(png(8, 4))
    (tmp_path / "large.png").write_bytes(bytes(20_000))
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), lambda *args: SimpleHTTPRequestHandler(*args, directory=str(tmp_path))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sources = ImageSources(None, True, max_pixels=100, max_bytes=10_000, timeout=5)
    url = f"http://127.0.0.1:{server.server_port}"
    assert sources.decode(sources.read(f"{url}/a.png", "image 1"), "image 1").size == (8, 4)
    for name, message in (("large.png", "more than 10000 bytes"), ("missing.png", "fetching the URL failed")):
        with pytest.raises(RequestError, match=message) as found:
            sources.read(f"{url}/{name}", "image 1")
        assert found.value.status == 400
    server.shutdown()


def test_experts_that_are_not_used_are_idle():
    from dmole_cli.experts.expert import Expert
    from dmole_cli.experts.routed import RoutedExperts
    from dmole_cli.inference.pool import ExpertPool

    model = torch.nn.Sequential(torch.nn.Linear(3, 2))
    loads: list[str] = []

    def load(name: str) -> Expert:
        loads.append(name)
        return Expert({"0": (torch.ones(1, 3), torch.ones(2, 1))}, 1.0)

    pool = ExpertPool(RoutedExperts(model, lambda site: "language"), load)
    pool.require([["a"], ["b"], [], ["b"]])
    assert (pool.idle(3), pool.idle(2), pool.idle(4)) == (["a"], ["a"], [])
    assert pool.unload(pool.idle(3)) == ["a"] and pool.loaded == ["b"]
    pool.require([["a", "b"]])
    assert loads == ["a", "b", "a"] and pool.idle(1) == []
    pool.preload(["c"])
    assert pool.loaded == ["b", "a", "c"] and pool.idle(1) == [], "what was loaded in advance is not idle at once"


def test_pieces_of_a_stream_hold_back_what_may_change(backbone):
    from dmole_cli.serving.streaming import TextStream

    tokens = backbone.tokenizer("red blue", add_special_tokens=False)["input_ids"]
    stream = TextStream(backbone.tokenizer)
    pieces = [stream.add(token) for token in tokens]
    answer = backbone.tokenizer.decode(tokens).strip()
    assert "".join(pieces) + stream.rest(answer) == answer
    assert all(piece == piece.rstrip() for piece in pieces)
    with pytest.raises(ValueError, match="not the beginning"):
        stream.rest("another answer")
