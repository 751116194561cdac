"""Many requests to a service, a tenth of them wrong: `python -m pipelines.stress.service RUN 20000`.

RUN is a run directory whose evaluations after the last trained task exist; they are the expected answers. Every wrong request
(malformed, oversized, cut off, or hostile: paths, URLs, image bombs) must have one clear 4xx; no answer may be wrong, and the
memory of the service must not grow by more than 1 % after the first 1,000 requests. Halfway, the service is killed by SIGKILL
under load and started again: the record of active experts must be intact, and the answers the same.
"""

from __future__ import annotations

import argparse
import http.client
import random
import socket
import struct
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

from dmole_cli.artifacts.usage import Usage
from pipelines.stress._service import PATH, Known, Service, is_right, known_requests, open_run, post, request, running

CLIENTS, WARM, GROWTH = 16, 1000, 0.01
LIMITS = ("--max-body", "1", "--max-pixels", "4", "--longest-question", "1000", "--timeout", "60")


def png(width: int, height: int) -> str:
    """A data URI of a PNG of zeros: a few kilobytes for any number of pixels."""
    import base64

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress(b"\0" * (height * (width // 8 + 2)), 9)
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def wrong_bodies() -> dict[str, bytes]:
    """Bodies that must be refused, by what is wrong with them."""
    bomb = png(20_000, 20_000)
    return {
        "no JSON": b'{"model": "auto", "messages": [',
        "no object": b"[1, 2]",
        "deep": b'{"model": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        "binary": bytes(range(256)) * 20,
        "no messages": b'{"model": "auto"}',
        "number": b'{"model": "auto", "messages": 1e999}',
        "unknown model": request("?").replace(b'"auto"', b'"../../etc/passwd"'),
        "temperature": request("?", temperature=1.0),
        "oversized": request("x" * 2_000_000),
        "long": request("word " * 5000),
        "endless answer": request("?", max_tokens=10**9),
        "negative answer": request("?", max_tokens=-1),
        "path": request("?", ["file:///etc/passwd"]),
        "relative path": request("?", ["file:../../../../etc/passwd"]),
        "device": request("?", ["file:///dev/zero"]),
        "URL": request("?", ["http://169.254.169.254/latest/meta-data"]),
        "other scheme": request("?", ["gopher://localhost/1"]),
        "image bomb": request("?", [bomb]),
        "no image": request("?", ["data:image/png;base64,aGVsbG8="]),
        "cut image": request("?", [png(64, 64)[:-60]]),
        "no base64": request("?", ["data:image/png;base64,\x00\xff"]),
        "many images": request("?", [png(8, 8)] * 40),
        "surrogate": b'{"model": "auto", "messages": [{"role": "user", "content": "\\ud800"}]}',
        "empty": request(""),
    }


def cut_off(service: Service, body: bytes) -> None:
    """Send a part of a request, and close the connection."""
    with socket.create_connection((service.host, service.port)) as line:
        head = (
            f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        line.sendall(head.encode() + body[: len(body) // 2])


class Soak:
    """Sends requests and counts what comes back.

    Args:
        known: requests with known answers.
        seed: of the order of requests.
    """

    def __init__(self, known: Sequence[Known], *, seed: int) -> None:
        self.known, self.wrong, self.counts = known, wrong_bodies(), Counter[str]()
        self.strange: list[str] = []
        self._choose, self._lock = random.Random(seed), threading.Lock()

    def run(self, service: Service, count: int, after: Callable[[int], None] = lambda done: None) -> None:
        """Send a number of requests by `CLIENTS` connections; `after` is called with the number of requests so far."""
        local, sent = threading.local(), [0]

        def one(number: int) -> None:
            if not hasattr(local, "client"):
                local.client = service.client()
            with self._lock:
                name = self._choose.choice([*self.wrong, "cut off"]) if self._choose.random() < 0.1 else ""
                known = self._choose.choice(self.known)
            try:
                self._send(service, local.client, name, known)
            except (OSError, http.client.HTTPException) as error:
                local.client.close()
                self._note("connection lost", f"{name or 'a request'}: {error!r}")
            with self._lock:
                sent[0] += 1
                after(sent[0])

        with ThreadPoolExecutor(CLIENTS) as clients:
            list(clients.map(one, range(count)))

    def _send(self, service: Service, client: http.client.HTTPConnection, name: str, known: Known) -> None:
        if name == "cut off":
            cut_off(service, known.body)
            self._note("cut off")
            return
        status, found = post(client, self.wrong[name] if name else known.body)
        if not name:
            self._note("right" if status == 200 and is_right(found, known) else "wrong", f"{status} {found}"[:300])
        elif 400 <= status < 500 and isinstance(found, dict) and found["error"]["message"]:
            self._note("refused")
        else:
            self._note("not refused", f"{name}: {status} {found}"[:300])

    def _note(self, kind: str, text: str = "") -> None:
        with self._lock:
            self.counts[kind] += 1
            if kind not in ("right", "refused", "cut off"):
                self.strange.append(f"{kind}: {text}")


def main() -> None:
    """Run the test; exit code 1 where something went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("requests", type=int, nargs="?", default=20_000)
    options = parser.parse_args()
    work = open_run(options.run)
    soak = Soak(known_requests(work, per_task=50), seed=0)
    begun, memory = time.monotonic(), list[tuple[int, int]]()
    with running(options.run, *LIMITS) as service:
        process = psutil.Process(service.process.pid)

        def watch(done: int) -> None:
            if done % 500 == 0:
                memory.append((done, process.memory_info().rss))
                print(f"{done:,} requests, {memory[-1][1] >> 20} MiB, {dict(soak.counts)}", file=sys.stderr, flush=True)

        soak.run(service, options.requests, watch)
        alive = service.process.poll() is None
    first, last = next((rss for done, rss in memory if done >= WARM), 0), memory[-1][1] if memory else 0
    growth = last / first - 1 if first else 0.0
    killed = _killed_under_load(options.run, soak)
    seconds = time.monotonic() - begun
    print(
        f"{options.requests:,} requests in {seconds:.0f} s: {dict(soak.counts)}; growth of memory {100 * growth:.2f} %"
    )
    print(f"alive at the end: {alive}; after SIGKILL under load: {killed}")
    for line in soak.strange[:20]:
        print(line)
    sys.exit(1 if soak.strange or not alive or growth > GROWTH or killed != "record intact, answers right" else 0)


def _killed_under_load(run: Path, soak: Soak) -> str:
    """Kill a service while it answers, start it again, and look at its record and its answers."""
    with running(run, *LIMITS) as service:
        lost = Soak(soak.known, seed=1)
        loading = threading.Thread(target=lost.run, args=(service, 400))
        loading.start()
        time.sleep(3)
        service.process.kill()
        loading.join()
    counts = Usage(open_run(run).run.usage("d-mole")).counts()
    wrong = [text for text in lost.strange if not text.startswith("connection lost")]
    with running(run, *LIMITS) as service:
        again = Soak(soak.known, seed=2)
        again.run(service, 200)
    if wrong or again.strange or not counts.requests:
        return f"wrong: {[*wrong, *again.strange][:3]}, {counts.requests} requests recorded"
    return "record intact, answers right"


if __name__ == "__main__":
    main()
