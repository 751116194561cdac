"""What is wrong with a request, as the service answers it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Status -> the type that OpenAI's interface gives such errors.
TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class RequestError(Exception):
    """A request that is not answered.

    Attributes:
        status: of the response: 4xx where the request is wrong, 5xx where the service is.
        message: what is wrong, and what is expected.
        param: the part of the request that is wrong; None for the whole.
        headers: further headers of the response.
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.headers = status, message, param, dict(headers or {})

    def as_dict(self) -> dict[str, Any]:
        """The body of the response, in the shape of OpenAI's errors."""
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.status}}


def invalid(message: str, *, param: str | None = None) -> RequestError:
    """A request that no repetition makes valid."""
    return RequestError(400, message, param=param)
