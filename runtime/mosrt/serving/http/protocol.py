"""The HTTP protocol of the server: uvicorn's, with limits of time and connections."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from .limits import Limits
from .problems import PROBLEMS, Problem

__all__ = ["Protocol"]

# How long a refused body is read and thrown away. To close the connection while the client sends
# would destroy the answer on its way.
_LINGER_S: Final = 2.0


class Protocol(H11Protocol):
    """Speaks HTTP/1.1 with one client.

    uvicorn waits for headers as long as it takes. This closes a connection whose headers do not
    arrive in time, refuses connections beyond the most that there may be, throws a refused body
    away for two seconds only, and answers what is no HTTP with a problem body. The application's
    lifespan must give its `limits`.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._limits: Limits = self.app_state["limits"]
        self._timer: asyncio.TimerHandle | None = None
        self._lingering = False
        self._refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Waits for the first request."""
        super().connection_made(transport)
        if len(self.connections) > self._limits.max_connections:
            detail = "the server has too many connections; try again later"
            self._refuse(Problem("unavailable", detail, retry_after_s=1))
        else:
            self._restart()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the timer."""
        self._stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Takes bytes, and waits for the rest of the headers, if there is one."""
        if not self._refused:
            super().data_received(data)
            self._watch()

    def _watch(self) -> None:
        """Starts or stops the timer, as the headers of a request begin or end."""
        if self._refused:
            return
        if self.transport.is_closing() or self.transport.get_protocol() is not self:
            self._stop()  # it is closed, or a WebSocket now
        elif self._lingering and self.conn.their_state is h11.SEND_BODY:
            return
        elif self.conn.their_state is not h11.IDLE:
            self._stop()
        elif self._timer is None or self._lingering:
            self._restart()

    def on_response_complete(self) -> None:
        """Throws away what is left of a body, but not for long."""
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY and not self.transport.is_closing():
            self._stop()
            self._lingering = True
            self._timer = self.loop.call_later(_LINGER_S, self.transport.close)

    def send_400_response(self, msg: str) -> None:
        """Answers what is no HTTP."""
        self._refuse(Problem("bad-request", f"{msg.rstrip('.')}, or its headers are too long"))

    def _restart(self) -> None:
        self._stop()
        self._timer = self.loop.call_later(self._limits.header_timeout_s, self._too_late)

    def _stop(self) -> None:
        self._lingering = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_late(self) -> None:
        """Answers half a request, and closes a connection without one."""
        if self.transport.is_closing():
            return
        limit_s = self._limits.header_timeout_s
        if self.conn.trailing_data[0]:
            self._refuse(Problem("timeout", f"the headers did not arrive within {limit_s:g} s"))
        else:
            self.transport.close()

    def _refuse(self, problem: Problem) -> None:
        """Answers outside of the application, and closes the connection."""
        body = json.dumps(problem.body).encode()
        reason = PROBLEMS[problem.kind][1]
        lines = [
            f"HTTP/1.1 {problem.status} {reason}",
            "Content-Type: application/problem+json",
            f"Content-Length: {len(body)}",
            "Connection: close",
            *(f"{name}: {value}" for name, value in problem.headers.items()),
        ]
        self.transport.write("\r\n".join([*lines, "", ""]).encode() + body)
        self.transport.write_eof()
        self._stop()
        self._refused = True
        self._timer = self.loop.call_later(_LINGER_S, self.transport.close)
