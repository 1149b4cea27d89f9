"""Runs the application with uvicorn, in one process or several."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import re
import signal
import socket
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import uvicorn
from starlette.applications import Starlette

from mosrt.errors import MosrtError
from mosrt.serving.async_scorer import AsyncScorer

from .access import AccessLog
from .app import create_app
from .limits import Limits
from .protocol import Protocol

__all__ = ["TOKEN_VARIABLE", "Settings", "serve", "worker_app"]

TOKEN_VARIABLE: Final = "MOSRT_TOKEN"  # noqa: S105 - a name
"""The environment variable that may hold the bearer token."""

_LOG = logging.getLogger(__name__)
# What a process with several workers tells them.
_SETTINGS: Final = "MOSRT_SERVE_SETTINGS"
_METRICS: Final = "PROMETHEUS_MULTIPROC_DIR"
_MAX_MESSAGE_BYTES: Final = 1 << 20
# A worker that does not answer for so long is replaced. A busy machine takes its time to start one;
# but one that is killed in the moment it is asked is missed only after this time.
_START_S: Final = 20
_LOGGING: Final[dict[str, Any]] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "loggers": {
        "uvicorn": {"handlers": ["stderr"], "level": "INFO", "propagate": False},
        "mosrt": {"handlers": ["stderr"], "level": "WARNING", "propagate": False},
        "mosrt.serving.http": {"level": "INFO"},
        # It warns of each poor recording; the access log has its flags.
        "mosrt.scorer": {"level": "ERROR"},
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How to serve.

    Attributes:
        model: Name of an embedded model or path of a bundle; None for the default.
        host: Address to listen at.
        port: Port to listen at; 0 for any that is free.
        uds: Path of a Unix socket to listen at instead.
        workers: Processes.
        token_file: File with the bearer token.
        allow_origins: Origins whose web pages may call the API.
        demo: Whether / shows a page to try the model with.
        access_log: Whether to write a line of JSON for each request to standard output.
        drain_delay_s: See `create_app`.
        grace_s: See `create_app`.
        limits: Limits of requests.
        scorer: Options of `mosrt.AsyncScorer`.
    """

    model: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    uds: str | None = None
    workers: int = 1
    token_file: str | None = None
    allow_origins: tuple[str, ...] = ()
    demo: bool = False
    access_log: bool = True
    drain_delay_s: float = 0.0
    grace_s: float = 30.0
    limits: Limits = field(default_factory=Limits)
    scorer: dict[str, Any] = field(default_factory=dict)


def serve(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT, and returns when accepted requests are finished.

    Raises:
        BundleError: The model cannot be used.
        OSError: The address or the socket cannot be listened at, or the token cannot be read.
        SystemExit: The server cannot start; its log says why.
    """
    with _unix_socket(settings.uds) as listening:
        if settings.workers == 1:
            _serve_here(settings, listening)
        else:
            _serve_in_workers(settings, listening)


def worker_app() -> Starlette:
    """The application of one of several processes, which gets its settings from its parent."""
    values = json.loads(os.environ[_SETTINGS])
    limits = Limits(**values.pop("limits"))
    settings = Settings(limits=limits, **values)
    return _app(settings, _scorer(settings), refuse_at_end=False)


def _serve_here(settings: Settings, listening: socket.socket | None) -> None:
    scorer = _scorer(settings).open()
    app = _app(settings, scorer, refuse_at_end=True)
    config = uvicorn.Config(app, host=settings.host, port=settings.port, **_options(settings))
    server = uvicorn.Server(config)
    if settings.uds is not None:  # of which uvicorn tells nothing, since it did not open it
        _LOG.info("Running on unix socket %s", settings.uds)

    # uvicorn passes signals on when it has ended. It has done then what they ask for.
    def end(_number: int, _frame: object) -> None:
        server.should_exit = True

    handlers = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        server.run(None if listening is None else [listening])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        asyncio.run(scorer.aclose(timeout_s=1.0))
    if not server.started:
        sys.exit(3)


def _serve_in_workers(settings: Settings, listening: socket.socket | None) -> None:
    asyncio.run(_scorer(settings).open().aclose())  # which tells what is wrong with the model
    _token(settings.token_file)
    with tempfile.TemporaryDirectory(prefix="mosrt-serve-") as folder:
        os.environ[_SETTINGS] = json.dumps(asdict(settings))
        os.environ[_METRICS] = folder
        uvicorn.run(
            f"{__name__}:{worker_app.__name__}",
            factory=True,
            workers=settings.workers,
            fd=None if listening is None else listening.fileno(),
            host=settings.host,
            port=settings.port,
            **_options(settings),
        )


def _scorer(settings: Settings) -> AsyncScorer:
    return AsyncScorer(settings.model, **settings.scorer)


def _app(settings: Settings, scorer: AsyncScorer, *, refuse_at_end: bool) -> Starlette:
    return create_app(
        scorer,
        limits=settings.limits,
        token=_token(settings.token_file),
        allow_origins=tuple(settings.allow_origins),
        demo=settings.demo,
        access_log=AccessLog() if settings.access_log else None,
        drain_delay_s=settings.drain_delay_s,
        grace_s=settings.grace_s,
        refuse_at_end=refuse_at_end,
    )


def _options(settings: Settings) -> dict[str, Any]:
    return {
        "http": Protocol,
        "ws": "websockets-sansio",
        "ws_max_size": _MAX_MESSAGE_BYTES,
        "ws_per_message_deflate": False,
        "lifespan": "on",
        "log_config": _LOGGING,
        "access_log": False,
        "server_header": False,
        "timeout_graceful_shutdown": math.ceil(settings.grace_s),
        "timeout_worker_healthcheck": _START_S,
    }


def _token(file: str | None) -> str | None:
    """The bearer token; None if there is none."""
    if file is None:
        text, source = os.environ.get(TOKEN_VARIABLE), TOKEN_VARIABLE
    else:
        text, source = Path(file).read_text(encoding="utf-8", errors="replace"), file
    if text is None:
        return None
    token = text.strip()
    if not re.fullmatch(r"[A-Za-z0-9._~+/-]+=*", token):
        raise MosrtError(
            f"{source}: holds no bearer token, of letters, digits and -._~+/ only; make one with "
            "`openssl rand -hex 32`"
        )
    return token


@contextmanager
def _unix_socket(path: str | None) -> Iterator[socket.socket | None]:
    """Listens at a Unix socket that the user and the group may use; None without a path.

    The socket that a killed server has left is replaced.
    """
    if path is None:
        yield None
        return
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with listening:
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            if stat.S_ISSOCK(Path(path).stat().st_mode):
                try:
                    client.connect(path)
                except ConnectionRefusedError:
                    Path(path).unlink()
        before = os.umask(0o117)
        try:
            listening.bind(path)
        except OSError as exc:
            raise OSError(exc.errno, exc.strerror, path) from exc
        finally:
            os.umask(before)
        try:
            yield listening
        finally:
            Path(path).unlink(missing_ok=True)
