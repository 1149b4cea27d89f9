"""Gives requests an id, logs them as JSON lines and counts them."""

from __future__ import annotations

import json
import logging
import queue
import re
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime, timezone
from typing import IO, Any, Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .metrics import Metrics

__all__ = ["Access", "AccessLog", "note", "request_id"]

_LOG = logging.getLogger(__name__)
_KNOWN_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_KEY: Final = "mosrt.access"
_HUNG_UP: Final = 499
_MOST_WAITING: Final = 10_000
_FLUSH_S: Final = 2.0


def request_id(scope: Mapping[str, Any]) -> str:
    """The id of a request: what the client sent as X-Request-ID, or a new one."""
    return str(scope[_KEY]["request_id"])


def note(scope: Mapping[str, Any], **members: Any) -> None:
    """Adds members to the log line of a request."""
    scope[_KEY].update(members)


class AccessLog:
    """Writes lines of JSON to a stream, in a thread, so that a full pipe delays no request.

    Lines that cannot be written, or that come faster than they can be, are dropped.

    Args:
        stream: Where to write; by default standard output.
    """

    def __init__(self, stream: IO[str] | None = None) -> None:
        self._stream = stream
        self._lines: queue.Queue[dict[str, Any] | None] = queue.Queue(_MOST_WAITING)
        self._thread: threading.Thread | None = None

    def __call__(self, line: dict[str, Any]) -> None:
        """Writes a line, soon."""
        if self._thread is None:  # not before, since a process may fork
            self._thread = threading.Thread(target=self._write, name="mosrt-access", daemon=True)
            self._thread.start()
        with suppress(queue.Full):
            self._lines.put_nowait(line)

    def close(self) -> None:
        """Writes what waits, for at most four seconds."""
        thread, self._thread = self._thread, None
        if thread is not None:
            with suppress(queue.Full):
                self._lines.put(None, timeout=_FLUSH_S)
                thread.join(_FLUSH_S)

    def _write(self) -> None:
        stream = self._stream or sys.stdout
        while (line := self._lines.get()) is not None:
            try:
                stream.write(json.dumps(line, separators=(",", ":")) + "\n")
                stream.flush()
            except (OSError, ValueError):  # a full disk, a closed pipe
                continue


class Access:
    """Middleware around all others.

    Args:
        app: The application behind it.
        metrics: Where requests are counted.
        paths: Paths that metrics name.
        log: Takes a line for each request, as a dictionary that JSON can hold.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        paths: frozenset[str],
        log: Callable[[dict[str, Any]], None] | None,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._paths = paths
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves a request."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        sent_id = Headers(scope=scope).get("x-request-id", "")
        own_id = sent_id if _KNOWN_ID.fullmatch(sent_id) else uuid.uuid4().hex
        line: dict[str, Any] = {
            "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            "request_id": own_id,
            "client": (scope.get("client") or ("",))[0],
            "method": scope.get("method", "WEBSOCKET"),
            "path": scope["path"],
            "status": _HUNG_UP,
            "bytes_in": 0,
            "bytes_out": 0,
        }
        scope[_KEY] = line
        # Applications behind this one change it.
        path = scope["path"].removeprefix(scope.get("root_path", ""))

        async def counted_receive() -> Message:
            message = await receive()
            for key in ("body", "bytes", "text"):
                line["bytes_in"] += len(message.get(key) or b"")
            return message

        async def noted_send(message: Message) -> None:
            kind = message["type"]
            if kind in ("http.response.start", "websocket.http.response.start"):
                line["status"] = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = own_id
            elif kind == "websocket.accept":
                line["status"] = 101
            for key in ("body", "bytes", "text"):
                line["bytes_out"] += len(message.get(key) or b"")
            await send(message)

        try:
            await self._app(scope, counted_receive, noted_send)
        except Exception as exc:
            line["status"] = 500
            _LOG.error("request %s failed: %s", own_id, type(exc).__name__)
            raise
        finally:
            seconds = time.perf_counter() - started
            line["duration_ms"] = round(1e3 * seconds, 1)
            self._count(path, line, seconds)
            if self._log is not None:
                self._log(line)

    def _count(self, path: str, line: dict[str, Any], seconds: float) -> None:
        path = path if path in self._paths else "other"
        method = line["method"] if path != "other" else ""
        self._metrics.requests.labels(path, method, line["status"]).inc()
        self._metrics.seconds.labels(path).observe(seconds)
        self._metrics.received.inc(line["bytes_in"])
