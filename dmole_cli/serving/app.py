"""The HTTP interface of the service: OpenAI's chat completions, models, health, metrics, and experts in memory."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager, suppress
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dmole_cli import __version__
from dmole_cli.inference.answering import Reply
from dmole_cli.serving.chat import ChatRequest, chunk, completion, model_list, parse_chat, parse_request
from dmole_cli.serving.errors import RequestError, invalid
from dmole_cli.serving.service import FAILED, Service
from dmole_cli.serving.streaming import TextStream

WATCH = 2.0  # seconds between two looks at the run directory
OPEN = ("/healthz", "/metrics")  # need no API key
DROPPED = 4  # times the maximum size of a body, of which the rest is read and dropped
BODY = {"requestBody": {"content": {"application/json": {"schema": ChatRequest.model_json_schema()}}, "required": True}}


class ExpertNames(BaseModel):
    """The body of `POST /v1/experts/load`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    experts: list[str] = Field(min_length=1)


class IdleExperts(BaseModel):
    """The body of `POST /v1/experts/unload`: names, or a number of latest requests."""

    model_config = ConfigDict(extra="forbid", strict=True)

    experts: list[str] | None = None
    idle: int | None = Field(None, ge=1)


def create_app(service: Service, *, api_key: str | None = None) -> FastAPI:
    """The application.

    Args:
        service: answers the requests.
        api_key: requests must have it as a bearer token; None for none.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        watching = asyncio.create_task(service.watch(WATCH)) if service.settings.watch else None
        yield
        if watching is not None:
            watching.cancel()
        await asyncio.to_thread(service.close)

    app = FastAPI(title="dmole", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    _handle_errors(app)
    app.add_middleware(Gate, service=service, api_key=api_key)

    @app.post("/v1/chat/completions", openapi_extra=BODY, summary="Answer a question about images")
    async def chat(request: Request) -> Response:
        return await _chat(service, request)

    @app.get("/v1/models", summary="The backbone, each expert, and `auto`, which routes")
    async def models() -> dict[str, Any]:
        return model_list(service.models)

    @app.get("/v1/models/{name}", summary="One model")
    async def model(name: str) -> dict[str, Any]:
        service.experts_of(name)
        return next(card for card in service.models if card["id"] == name)

    @app.get("/healthz", summary="Whether the service answers")
    async def health() -> Response:
        alive = service.engine.alive
        return JSONResponse({"status": "ok" if alive else "the model's thread has ended"}, 200 if alive else 503)

    @app.get("/metrics", summary="Figures for Prometheus")
    async def metrics() -> Response:
        return Response(service.metrics.page(), media_type="text/plain; version=0.0.4")

    @app.post("/v1/experts/unload", summary="Free the memory of experts; requests load them again")
    async def unload(request: Request) -> dict[str, Any]:
        wanted: Any = parse_request(await _body(request, service), IdleExperts)
        if (wanted.experts is None) == (wanted.idle is None):
            raise invalid("expected either `experts` or `idle`")
        unloading = service.unload(wanted.experts) if wanted.idle is None else service.unload_idle(wanted.idle)
        return {"unloaded": await unloading, "loaded": service.answering.pool.loaded}

    @app.post("/v1/experts/load", summary="Load experts before a request needs them")
    async def load(request: Request) -> dict[str, Any]:
        wanted: Any = parse_request(await _body(request, service), ExpertNames)
        await service.load(wanted.experts)
        return {"unloaded": [], "loaded": service.answering.pool.loaded}

    return app


def _handle_errors(app: FastAPI) -> None:
    """Give all errors the shape of OpenAI's."""

    @app.exception_handler(RequestError)
    async def refused(request: Request, error: RequestError) -> Response:
        return JSONResponse(error.as_dict(), error.status, error.headers)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        return JSONResponse(RequestError(error.status_code, str(error.detail)).as_dict(), error.status_code)

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:
        return JSONResponse(invalid("the request was cut off").as_dict(), 400)  # nobody reads it; it is counted


class Gate:
    """Checks the API key, counts responses, and answers what no handler has foreseen with 500; an ASGI middleware.

    Args:
        app: what it wraps.
        service: counts and logs.
        api_key: requests must have it as a bearer token; None for none.
    """

    def __init__(self, app: ASGIApp, *, service: Service, api_key: str | None) -> None:
        self.app, self.service, self.api_key = app, service, api_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, status = time.monotonic(), 0

        async def counted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            if scope["path"] in OPEN or self.api_key is None or self._has_key(scope):
                await self.app(scope, receive, counted)
            else:
                error = RequestError(401, "expected the API key of this service as a bearer token")
                await JSONResponse(error.as_dict(), 401, {"WWW-Authenticate": "Bearer"})(scope, receive, counted)
        except Exception as fault:  # of dmole: the request fails, the service goes on
            self.service.log(f"unexpected {type(fault).__name__} for {scope['path']}: {fault}")
            if not status:
                await JSONResponse(RequestError(500, FAILED).as_dict(), 500)(scope, receive, counted)
        finally:
            if scope["path"] not in OPEN:
                self.service.metrics.request(status, time.monotonic() - begun)

    def _has_key(self, scope: Scope) -> bool:
        scheme, _, token = Headers(scope=scope).get("authorization", "").partition(" ")
        expected = str(self.api_key).encode()
        return scheme.lower() == "bearer" and secrets.compare_digest(token.strip().encode(), expected)


async def _body(request: Request, service: Service) -> bytes:
    """The body of a request.

    Of a body that is too large, the rest is read and dropped for a while: a client that still sends would not read the error.

    Raises:
        RequestError: it is too large, or does not arrive in time.
    """
    content, size = bytearray(), 0
    try:
        async with asyncio.timeout(service.settings.timeout):
            async for part in request.stream():
                size += len(part)
                if size <= service.max_bytes:
                    content += part
                elif size > DROPPED * service.max_bytes:
                    break
    except TimeoutError as error:
        raise RequestError(408, "the body did not arrive in time") from error
    if size > service.max_bytes:
        raise RequestError(413, f"the body has more than {service.max_bytes} bytes")
    return bytes(content)


async def _chat(service: Service, request: Request) -> Response:
    with ExitStack() as stack:
        stack.enter_context(service.admitted())
        chat = parse_chat(await _body(request, service))
        try:
            async with asyncio.timeout(service.settings.timeout):
                if not chat.stream:
                    return JSONResponse(await _whole(service, chat))
                pieces = _Stream(service, chat)
                await pieces.begin()
        except TimeoutError as error:
            raise RequestError(504, f"no answer within {service.settings.timeout:g} seconds") from error
        # From here on, the request is in progress until its stream ends.
        return StreamingResponse(pieces.events(stack.pop_all()), media_type="text/event-stream")


async def _whole(service: Service, chat: ChatRequest) -> dict[str, Any]:
    future, prompt = await service.submit(chat)
    try:
        reply = await service.answer(future)
    finally:
        future.cancel()  # where the request was given up
    facts = {"usage": _usage(prompt, reply), "dmole": _facts(reply)}
    return completion(_new_id(), chat.model, reply.answer, _ended(reply), facts)


class _Stream:
    """A response in pieces, as server-sent events."""

    def __init__(self, service: Service, chat: ChatRequest) -> None:
        self.service, self.chat, self.id = service, chat, _new_id()
        self._text = TextStream(service.answering.backbone.tokenizer)
        self._tokens: asyncio.Queue[int | None] = asyncio.Queue()
        self._first: int | None = None

    async def begin(self) -> None:
        """Wait for the first token, so that a request that fails has an error and not a stream.

        Raises:
            RequestError: as for `Service.submit` and `Service.answer`.
        """
        loop = asyncio.get_running_loop()

        def emit(token: int | None) -> None:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._tokens.put_nowait, token)

        self._future, self._prompt = await self.service.submit(self.chat, emit)
        self._future.add_done_callback(lambda future: emit(None))
        try:
            self._first = await self._tokens.get()
        except asyncio.CancelledError:
            self._future.cancel()
            raise
        if (
            self._first is None
        ):  # ended before a token arrived: an error, or a decoder whose tokens do not arrive one by one
            await self.service.answer(self._future)

    async def events(self, progress: ExitStack) -> AsyncIterator[str]:
        """The events; `progress` is closed at the end."""
        with progress:
            try:
                yield _event(chunk(self.id, self.chat.model, {"role": "assistant", "content": ""}))
                async with asyncio.timeout(self.service.settings.timeout):
                    token = self._first
                    while token is not None:
                        if piece := self._text.add(token):
                            yield _event(chunk(self.id, self.chat.model, {"content": piece}))
                        token = await self._tokens.get()
                    reply = await self.service.answer(self._future)
                for event in self._last(reply):
                    yield event
            except RequestError as error:
                yield _event(error.as_dict())
            except TimeoutError:
                yield _event(RequestError(504, "the answer did not end in time").as_dict())
            finally:
                self._future.cancel()

    def _last(self, reply: Reply) -> list[str]:
        chat, usage = self.chat, _usage(self._prompt, reply)
        facts = {"dmole": _facts(reply)}
        found = []
        if rest := self._text.rest(reply.answer):
            found.append(chunk(self.id, chat.model, {"content": rest}))
        found.append(chunk(self.id, chat.model, {}, ended=_ended(reply), facts=facts))
        if chat.stream_options is not None and chat.stream_options.include_usage:
            found.append(chunk(self.id, chat.model, {}, facts={"usage": usage}) | {"choices": []})
        return [*map(_event, found), "data: [DONE]\n\n"]


def _event(value: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def _new_id() -> str:
    return f"chatcmpl-{secrets.token_hex(12)}"


def _usage(prompt: int, reply: Reply) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": reply.tokens, "total_tokens": prompt + reply.tokens}


def _facts(reply: Reply) -> dict[str, Any]:
    return {key: value for key, value in reply.as_dict().items() if key != "answer"}


def _ended(reply: Reply) -> str:
    return "stop" if reply.complete else "length"
