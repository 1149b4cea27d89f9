"""Refusals: each kind with its status, and the body that RFC 9457 describes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from starlette.responses import JSONResponse

__all__ = ["PROBLEMS", "Problem"]

PROBLEMS: Final[dict[str, tuple[int, str]]] = {
    "bad-request": (400, "The request is not well formed"),
    "unauthorized": (401, "A valid bearer token is needed"),
    "not-found": (404, "There is no such resource"),
    "method-not-allowed": (405, "The resource does not have this method"),
    "timeout": (408, "The request did not arrive in time"),
    "too-large": (413, "The body is too long"),
    "unsupported-media-type": (415, "This type of body is not read"),
    "unscorable": (422, "The recording cannot be scored"),
    "too-long": (422, "The recording is too long"),
    "too-many-channels": (422, "The recording has too many channels"),
    "too-many-items": (422, "The batch has too many recordings"),
    "overloaded": (429, "The server has too much to do"),
    "internal": (500, "The server failed"),
    "unavailable": (503, "The server does not take requests now"),
}
"""Status and title of each kind of problem."""

_TYPE: Final = "urn:mosrt:problem:"


class Problem(Exception):  # noqa: N818 - the word of RFC 9457
    """A refusal of a request.

    Args:
        kind: A key of `PROBLEMS`.
        detail: What is wrong, and what to do about it, for the client. It must name nothing of the
            server, such as a path.
        retry_after_s: When to try again, in seconds; rounded up in the header `Retry-After`.
        headers: Further headers of the answer.
        **members: Further members of the body.
    """

    def __init__(
        self,
        kind: str,
        detail: str,
        *,
        retry_after_s: float | None = None,
        headers: Mapping[str, str] | None = None,
        **members: Any,
    ) -> None:
        super().__init__(detail)
        self.kind = kind
        self.status, title = PROBLEMS[kind]
        self.headers = dict(headers or {})
        self.body: dict[str, Any] = {
            "type": f"{_TYPE}{kind}", "title": title, "status": self.status, "detail": detail,
            **members,
        }  # fmt: skip
        if retry_after_s is not None:
            seconds = max(1, math.ceil(retry_after_s))
            self.headers["Retry-After"] = str(seconds)
            self.body["retry_after_s"] = seconds
        if kind == "unauthorized":
            self.headers["WWW-Authenticate"] = "Bearer"

    def response(self, request_id: str | None = None) -> JSONResponse:
        """The answer.

        Args:
            request_id: The id of the request, a member of the body.
        """
        body = self.body if request_id is None else {**self.body, "request_id": request_id}
        return JSONResponse(
            body, self.status, headers=self.headers, media_type="application/problem+json"
        )
