"""Chat completions in the shape of OpenAI's interface: what of it is understood, and what is refused.

A request has one message of the user, with text and images: the model was trained on single questions. Decoding is greedy.
Whatever would change the answer and is not supported is refused, never ignored.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from dmole_cli.data import markers
from dmole_cli.serving.errors import RequestError, invalid
from dmole_cli.settings.documents import parse_json

AUTO, BACKBONE = "auto", "backbone"  # ids of models beside those of the experts
SHORT = 200  # characters of a message that quotes a request


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ImageUrl(_Part):
    """An image: a data URI, or a `file:` or `http(s):` URL where the service allows them."""

    url: str
    detail: Literal["auto"] = "auto"


class TextPart(_Part):
    """A piece of the question's text."""

    type: Literal["text"]
    text: str


class ImagePart(_Part):
    """An image of the question."""

    type: Literal["image_url"]
    image_url: ImageUrl


def _as_parts(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(_Part):
    """The user's message."""

    role: Literal["user"]
    content: Annotated[list[Part], BeforeValidator(_as_parts), Field(min_length=1)]
    name: str | None = None


class StreamOptions(_Part):
    """What a stream has beside the answer."""

    include_usage: bool = False


class ResponseFormat(_Part):
    """Answers are plain text."""

    type: Literal["text"]


class ChatRequest(_Part):
    """The body of `POST /v1/chat/completions`; fields with a single possible value are those that clients send anyway."""

    model: str
    messages: list[Message] = Field(min_length=1, max_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Literal[1] | None = None
    temperature: float | None = Field(None, ge=0, le=0)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: Literal[False] | None = None
    frequency_penalty: float | None = Field(None, ge=0, le=0)
    presence_penalty: float | None = Field(None, ge=0, le=0)
    logprobs: Literal[False] | None = None
    response_format: ResponseFormat | None = None

    @property
    def longest(self) -> int | None:
        """Maximum number of tokens of the answer; None for that of the expert's task card."""
        return self.max_completion_tokens or self.max_tokens

    def question(self) -> tuple[str, list[str]]:
        """The text, with `<image>` at the place of each image, and the images' URLs.

        Images before the text need no markers; neither do images of a text that has markers of its own.
        """
        content = self.messages[0].content
        urls = [part.image_url.url for part in content if isinstance(part, ImagePart)]
        texts = [part.text for part in content if isinstance(part, TextPart)]
        first = next((index for index, part in enumerate(content) if isinstance(part, TextPart)), len(content))
        leading = all(isinstance(part, TextPart) for part in content[first:])
        if leading or any(markers.count(text) for text in texts):
            return "".join(texts), urls
        return "".join(part.text if isinstance(part, TextPart) else markers.IMAGE for part in content), urls


def parse_request(body: bytes, kind: type[BaseModel]) -> BaseModel:
    """A JSON body as a model of pydantic.

    Raises:
        RequestError: it is not JSON, or not valid; the message names the first invalid field.
    """
    try:
        document = parse_json(body)
        if b"\\ud" in body.lower():  # half of a pair of surrogates is not a character
            json.dumps(document, ensure_ascii=False).encode()
    except ValueError as error:
        raise invalid(f"the body is not JSON: {_short(str(error))}") from error
    if not isinstance(document, Mapping):
        raise invalid("the body must be a JSON object")
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        raise _explained(error) from error


def parse_chat(body: bytes) -> ChatRequest:
    """The body of a chat completion.

    Raises:
        RequestError: as for `parse_request`.
    """
    return cast(ChatRequest, parse_request(body, ChatRequest))


# What pydantic's message does not say.
_EXPLANATIONS = {
    "temperature": "answers are greedy: leave temperature out, or pass 0",
    "messages": "expected exactly one message, of the user: the model answers single questions",
    "role": "expected the role `user`: system prompts and conversations are not supported",
    "n": "a request has one answer: leave n out, or pass 1",
    "detail": "images are prepared as the backbone's processor does: leave detail out, or pass auto",
}


_FIELDS = {
    name for kind in (ChatRequest, Message, TextPart, ImagePart, ImageUrl, StreamOptions) for name in kind.model_fields
}


def _explained(error: ValidationError) -> RequestError:
    first = error.errors(include_url=False, include_context=False)[0]
    # pydantic adds the kinds of a union's members to the names of fields.
    *places, last = first["loc"] or ("body",)
    names = [*(str(part) for part in places if isinstance(part, int) or part in _FIELDS), str(last)]
    param = _short(".".join(names))
    if first["type"] == "extra_forbidden":
        return invalid(f"{param} is not supported", param=param)
    message = _EXPLANATIONS.get(names[-1], f"{param}: {_short(first['msg'])}")
    return invalid(message, param=param)


def _short(text: str) -> str:
    return text if len(text) <= SHORT else f"{text[:SHORT]} …"


def completion(request_id: str, model: str, answer: str, ended: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The response to a request.

    Args:
        request_id: of the response.
        model: as the request named it.
        answer: the text.
        ended: `stop` or `length`.
        facts: further keys: `usage` and `dmole`.
    """
    choice = {"index": 0, "message": {"role": "assistant", "content": answer}, "finish_reason": ended, "logprobs": None}
    return _response(request_id, "chat.completion", model, choice, facts)


def chunk(
    request_id: str, model: str, delta: Mapping[str, Any], *, ended: str | None = None, facts: Mapping[str, Any] = {}
) -> dict[str, Any]:
    """A part of a streamed response; the arguments are those of `completion`."""
    choice = {"index": 0, "delta": dict(delta), "finish_reason": ended, "logprobs": None}
    return _response(request_id, "chat.completion.chunk", model, choice, facts)


def _response(request_id: str, kind: str, model: str, choice: Any, facts: Mapping[str, Any]) -> dict[str, Any]:
    created = int(time.time())
    return {"id": request_id, "object": kind, "created": created, "model": model, "choices": [choice], **facts}


def model_card(name: str, *, root: str, parent: str | None = None) -> dict[str, Any]:
    """A model of `/v1/models`."""
    return {"id": name, "object": "model", "created": 0, "owned_by": "dmole", "root": root, "parent": parent}


def model_list(cards: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The response of `/v1/models`."""
    return {"object": "list", "data": list(cards)}
