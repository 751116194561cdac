"""A service in a process of its own, and requests with known answers: those that an evaluation has stored."""

from __future__ import annotations

import base64
import http.client
import json
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from dmole_cli.artifacts.evaluation import read_evaluation
from dmole_cli.artifacts.run import Run
from dmole_cli.cli.workspace import Workspace, workspace
from dmole_cli.methods._trained import trained_tasks
from dmole_cli.methods.base import load_method
from dmole_cli.settings.model import Settings
from dmole_cli.settings.reading import read_record
from dmole_cli.settings.record import FILE, located

PATH = "/v1/chat/completions"


@dataclass(frozen=True)
class Known:
    """A request whose answer is known.

    Attributes:
        task: of its sample.
        body: of the request, JSON.
        answer: what an evaluation has stored.
        experts: that were active.
    """

    task: str
    body: bytes
    answer: str
    experts: tuple[str, ...]


@dataclass
class Service:
    """A running service.

    Attributes:
        process: `dmole serve`.
        host, port: where it listens.
    """

    process: subprocess.Popen[str]
    host: str
    port: int

    def client(self) -> http.client.HTTPConnection:
        """A connection that is kept open between requests."""
        return http.client.HTTPConnection(self.host, self.port, timeout=120)


@contextmanager
def running(run: Path, *options: str) -> Iterator[Service]:
    """`dmole serve` on a run directory; killed at the end.

    Args:
        run: the run directory.
        options: of the command line.
    """
    command = [sys.executable, "-m", "dmole_cli", "serve", "--run", str(run), "--port", "0", "--json", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        text = ""
        while not text.endswith("}\n"):
            line = process.stdout.readline()
            if not line:
                raise SystemExit("the service has ended")
            text += line
        host, _, port = json.loads(text)["url"].removeprefix("http://").rpartition(":")
        yield Service(process, host, int(port))
    finally:
        process.kill()
        process.wait()


def open_run(run: Path) -> Workspace:
    """The workspace of a run directory, as its record states it."""
    return workspace(Settings.model_validate(located(read_record(run / FILE, Settings), run)), Run(run))


def known_requests(work: Workspace, *, per_task: int, seed: int = 0) -> list[Known]:
    """Requests about test samples of all tasks, in mixed order, with the answers after the last trained task."""
    after = trained_tasks(load_method("d-mole"), work.settings, work.run)
    found = []
    for task in (*work.settings.tasks, *work.settings.unseen):
        samples = work.data.samples(task, "test")
        answers = {
            answer.sample_id: answer for answer in read_evaluation(work.run.evaluation("d-mole", after, task))[0]
        }
        limit = work.data.card(task).generation.max_new_tokens
        for sample in list(samples)[:per_task]:
            answer = answers[sample.sample_id]
            images = [picture(open_image()) for open_image in sample.images]
            body = request(sample.question, images, max_tokens=limit)
            found.append(Known(task, body, answer.prediction, tuple(answer.active)))
    random.Random(seed).shuffle(found)
    return found


def picture(image: Any) -> str:
    """An image as a data URI."""
    content = BytesIO()
    image.save(content, "png")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def request(text: str, images: Sequence[str] = (), **options: Any) -> bytes:
    """The body of a chat completion."""
    parts = [*({"type": "image_url", "image_url": {"url": url}} for url in images), {"type": "text", "text": text}]
    return json.dumps({"model": "auto", "messages": [{"role": "user", "content": parts}], **options}).encode()


def post(client: http.client.HTTPConnection, body: bytes, *, path: str = PATH) -> tuple[int, Any]:
    """Status and JSON content of a response."""
    client.request("POST", path, body, {"Content-Type": "application/json"})
    response = client.getresponse()
    content = response.read()
    try:
        return response.status, json.loads(content)
    except ValueError:
        return response.status, content.decode(errors="replace")


def is_right(found: Any, known: Known) -> bool:
    """Whether a response has the answer and the experts of the evaluation."""
    return (
        found["choices"][0]["message"]["content"] == known.answer and tuple(found["dmole"]["experts"]) == known.experts
    )
