"""Takes or refuses requests before their bodies are read, and bounds bodies in size and time."""

from __future__ import annotations

import asyncio
import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .problems import Problem
from .service import Service

__all__ = ["Admission", "Authorization"]


class Authorization:
    """Middleware that asks for the bearer token.

    Args:
        app: The application behind it.
        service: What knows the token.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._expected = None if service.token is None else f"Bearer {service.token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves a request."""
        if self._expected is not None:
            given = Headers(scope=scope).get("authorization", "").encode("latin-1")
            scheme, _, token = given.partition(b" ")
            if not hmac.compare_digest(scheme.title() + b" " + token.strip(), self._expected):
                raise Problem("unauthorized", "send the header 'Authorization: Bearer TOKEN'")
        await self._app(scope, receive, send)


class Admission:
    """Middleware that takes requests to score, or refuses them.

    Args:
        app: The application behind it.
        service: What counts requests.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves a request."""
        if scope["type"] == "http" and scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        with self._service.admitted():
            if scope["type"] == "http":
                self._check_headers(Headers(scope=scope))
                receive = self._bounded(receive)
            await self._app(scope, receive, send)

    def _check_headers(self, headers: Headers) -> None:
        """Refuses what the headers alone show to be unacceptable."""
        encoding = headers.get("content-encoding", "identity").strip().lower()
        if encoding != "identity":
            raise Problem(
                "unsupported-media-type",
                f"bodies with Content-Encoding: {encoding} are not read; send them as they are",
                headers={"Accept-Encoding": "identity"},
            )
        length = headers.get("content-length", "0")
        # Servers refuse lengths that are no numbers; other ASGI servers may not.
        if not length.isascii() or not length.isdigit():
            raise Problem("bad-request", "Content-Length is no number")
        self._check_length(int(length[:20]))

    def _check_length(self, length: int) -> None:
        limit = self._service.limits.max_bytes
        if length > limit:
            raise Problem(
                "too-large",
                f"a body may have {limit} bytes; send less, or the recording as FLAC",
                limit=limit,
            )

    def _bounded(self, receive: Receive) -> Receive:
        """A `receive` that raises Problem when the body is too long, or too late."""
        loop = asyncio.get_running_loop()
        limit_s = self._service.limits.body_timeout_s
        deadline, done, length = loop.time() + limit_s, False, 0

        async def bounded() -> Message:
            nonlocal done, length
            if done:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), deadline - loop.time())
            except asyncio.TimeoutError:
                raise Problem(
                    "timeout",
                    f"the body did not arrive within {limit_s:g} s",
                ) from None
            length += len(message.get("body", b""))
            self._check_length(length)
            done = not message.get("more_body", False)
            return message

        return bounded
