"""`dmole experts load` and `unload` ask a running service."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import ClassVar

import pytest
import typer

from dmole_cli.cli.derive import build
from dmole_cli.cli.service import ask_service
from dmole_cli.cli.subcommands import module_of
from dmole_cli.errors import DmoleError


def typed(name: str, *words: str) -> None:
    """Run `dmole experts NAME` in this process."""
    build(f"experts {name}", module_of(f"experts {name}"), "", None).main(list(words), standalone_mode=False)


class Service(BaseHTTPRequestHandler):
    """Notes requests, and wants a key."""

    seen: ClassVar[list] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        allowed = self.headers.get("Authorization") == "Bearer secret"
        self.seen.append((self.path, body, allowed))
        answer = {"loaded": ["a"], "unloaded": ["b"]} if allowed else {"error": {"message": "no key"}}
        content = json.dumps(answer).encode()
        self.send_response(200 if allowed else 401)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        pass


def test_a_running_service_is_asked(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    server = HTTPServer(("127.0.0.1", 0), Service)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    try:
        ask_service(f"{url}/", "unload", {"idle": 100}, key="secret", json=True)
        assert json.loads(capsys.readouterr().out) == {"loaded": ["a"], "unloaded": ["b"]}
        monkeypatch.setenv("DMOLE_API_KEY", "secret")
        typed("load", "a", "b", "--url", url)
        assert "unloaded: b; in memory now: a" in capsys.readouterr().err
        with pytest.raises(DmoleError, match="answers 401: no key") as caught:
            ask_service(url, "load", {"experts": ["a"]}, key=None, json=False)
        assert "DMOLE_API_KEY" in caught.value.hint
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert Service.seen == [
        ("/v1/experts/unload", {"idle": 100}, True),
        ("/v1/experts/load", {"experts": ["a", "b"]}, True),
        ("/v1/experts/load", {"experts": ["a"]}, False),
    ]
    with pytest.raises(DmoleError, match=f"no service answers at {url}") as caught:
        typed("unload", "--idle", "5", "--url", url)
    assert "dmole serve" in caught.value.hint
    for words in ((), ("a", "--idle", "5")):
        with pytest.raises(typer.BadParameter, match="pass the experts to unload, or --idle N"):
            typed("unload", *words)
