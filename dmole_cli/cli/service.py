"""Requests to a running `dmole serve`, by the standard library."""

from __future__ import annotations

import json as json_module
from collections.abc import Mapping
from http.client import HTTPException
from typing import Annotated, Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import typer

from dmole_cli.cli import console
from dmole_cli.cli.derive import HOW, WHAT
from dmole_cli.errors import DmoleError

URL = "http://127.0.0.1:8000"
# Seconds: loading an expert reads a file.
TIMEOUT = 120.0
MAX_BYTES = 1 << 20  # of an answer

UrlOption = Annotated[
    str | None,
    typer.Option(help=f"Address of a running `dmole serve`, like {URL}.", metavar="URL", rich_help_panel=WHAT),
]
KeyOption = Annotated[
    str | None,
    typer.Option(
        "--api-key", help="Its API key.", envvar="DMOLE_API_KEY", show_envvar=True, metavar="KEY", rich_help_panel=HOW
    ),
]


def ask_service(url: str, what: str, request: Mapping[str, Any], *, key: str | None, json: bool) -> None:
    """Load or unload experts in a service, and print which ones were unloaded and which ones are in memory.

    Args:
        url: of the service.
        what: `load` or `unload`.
        request: the body.
        key: the service's API key, if it has one.
        json: print the answer as it is.

    Raises:
        DmoleError: no service answers there, or it refuses.
    """
    found = _post(f"{url.rstrip('/')}/v1/experts/{what}", request, key)
    if json:
        console.data(found)
        return
    loaded, unloaded = (", ".join(map(str, found.get(part) or ())) or "none" for part in ("loaded", "unloaded"))
    console.say(f"unloaded: {unloaded}; in memory now: {loaded}")


def _post(address: str, body: Mapping[str, Any], key: str | None) -> dict[str, Any]:
    if not address.startswith(("http://", "https://")):
        raise typer.BadParameter(f"--url {address}: expected an address like {URL}")
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    hint = f"check --url, and start a service: dmole serve (at {URL})"
    try:
        request = Request(address, json_module.dumps(body).encode(), headers)
        with urlopen(request, timeout=TIMEOUT) as reply:
            found = json_module.loads(reply.read(MAX_BYTES))
    except HTTPError as error:
        raise _refused(address, error) from error
    except (URLError, HTTPException, OSError) as error:
        reason = getattr(error, "reason", error)
        raise DmoleError(f"no service answers at {address}: {reason}", hint) from error
    except ValueError as error:
        raise DmoleError(f"{address} does not answer as `dmole serve` does: {error}", hint) from error
    if not isinstance(found, dict):
        raise DmoleError(f"{address} does not answer as `dmole serve` does", hint)
    return found


def _refused(address: str, error: HTTPError) -> DmoleError:
    try:
        message = str(json_module.loads(error.read(MAX_BYTES))["error"]["message"])
    except (ValueError, TypeError, KeyError, OSError):
        message = error.reason
    hint = "pass --api-key, or set DMOLE_API_KEY" if error.code in (401, 403) else "check the names of the experts"
    return DmoleError(f"the service at {address} answers {error.code}: {message}", hint)
