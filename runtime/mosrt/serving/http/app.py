"""The ASGI application: its resources, and the answers to what has none."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute
from starlette.websockets import WebSocketClose

from mosrt.serving.async_scorer import AsyncScorer

from .access import Access, AccessLog, request_id
from .admission import Admission, Authorization
from .limits import Limits
from .metrics import CONTENT_TYPE
from .problems import Problem
from .scoring import Scoring
from .service import Service
from .streaming import Streaming

__all__ = ["create_app"]

_PAGES: Final = Path(__file__).parent / "pages"
_EXPOSED: Final = ("X-Request-ID", "Retry-After")
_DENIAL: Final = "websocket.http.response"
# What the framework refuses.
_REFUSALS: Final = {
    404: ("not-found", "see /openapi.json"),
    405: ("method-not-allowed", "see the header Allow"),
}
# Pages load nothing from elsewhere.
_PAGE_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src "
    "'unsafe-inline'; connect-src 'self'; img-src data:; media-src blob:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
}


def create_app(
    model: str | os.PathLike[str] | AsyncScorer | None = None,
    *,
    limits: Limits | None = None,
    token: str | None = None,
    allow_origins: tuple[str, ...] = (),
    demo: bool = False,
    access_log: Callable[[dict[str, Any]], None] | None = None,
    drain_delay_s: float = 0.0,
    grace_s: float = 30.0,
    refuse_at_end: bool = False,
    **scorer_options: Any,
) -> Starlette:
    """Makes the application that `mosrt serve` runs.

    The model is loaded when the server starts the application, by ASGI's lifespan protocol. A
    framework that mounts the application must run its lifespan: enter
    `app.router.lifespan_context(app)` in its own.

    Args:
        model: Name of an embedded model or path of a bundle, as for `mosrt.load`; or a scorer that
            the program also uses itself, and closes.
        limits: Limits of requests; by default `Limits()`.
        token: Bearer token that clients must send for all below /v1 and for /metrics; none if None.
        allow_origins: Origins whose web pages may call the API, such as "https://example.org".
        demo: Whether / shows a page to try the model with.
        access_log: Takes a dictionary for each request, which JSON can hold.
        drain_delay_s: How long requests are still taken after SIGTERM, while /readyz says no.
        grace_s: How long accepted requests may take after that.
        refuse_at_end: Whether new requests get 503 meanwhile; else the socket is closed. Only for
            a server of one process.
        **scorer_options: Options of `mosrt.AsyncScorer`.

    Raises:
        ValueError: An option has a value that it does not know.
    """
    own = not isinstance(model, AsyncScorer)
    service = Service(
        model if isinstance(model, AsyncScorer) else AsyncScorer(model, **scorer_options),
        own=own,
        limits=limits or Limits(),
        token=token,
        drain_delay_s=drain_delay_s,
        grace_s=grace_s,
        refuse_at_end=refuse_at_end,
    )

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[Mapping[str, Any]]:
        try:
            async with service.running():
                yield {"limits": service.limits}
        finally:
            if isinstance(access_log, AccessLog):
                await asyncio.to_thread(access_log.close)

    handlers: dict[Any, Any] = {
        Problem: _on_problem,
        HTTPException: _on_http_exception,
        ClientDisconnect: _on_disconnect,
        Exception: _on_failure,
    }
    routes = _routes(service, demo=demo)
    middleware = [
        Middleware(Access, metrics=service.metrics, paths=frozenset(_paths(routes)), log=access_log)
    ]
    if allow_origins:
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=allow_origins,
                allow_methods=("GET", "POST"),
                allow_headers=("Authorization", "Content-Type", "X-Request-ID"),
                expose_headers=_EXPOSED,
            )
        )
    return Starlette(
        routes=routes,
        middleware=middleware,
        lifespan=lifespan,
        exception_handlers=handlers,
    )


def _routes(service: Service, *, demo: bool) -> list[BaseRoute]:
    scoring = Scoring(service)
    authorized = [Middleware(Authorization, service=service)]
    routes: list[BaseRoute] = [
        Mount(
            "/v1",
            routes=[
                Route("/score", scoring.score, methods=["POST"]),
                Route("/score/batch", scoring.batch, methods=["POST"]),
                Route("/reward", scoring.reward, methods=["POST"]),
                Route("/models", partial(_models, service)),
                WebSocketRoute("/stream", Streaming(service).stream),
            ],
            middleware=[*authorized, Middleware(Admission, service=service)],
        ),
        Route("/metrics", partial(_metrics, service), middleware=authorized),
        Route("/healthz", _healthz),
        Route("/readyz", partial(_readyz, service)),
        Route("/openapi.json", _openapi),
        Route("/docs", partial(_page, "docs.html")),
    ]
    if demo:
        routes.append(Route("/", partial(_page, "demo.html")))
    return routes


def _paths(routes: list[BaseRoute], above: str = "") -> list[str]:
    found = []
    for route in routes:
        if isinstance(route, Mount):
            found += _paths(route.routes, route.path)
        elif isinstance(route, Route | WebSocketRoute):
            found.append(above + route.path)
    return found


async def _models(service: Service, _request: Request) -> Response:
    info = service.scorer.info
    model = {
        "name": info.name,
        "variant": info.variant,
        "provider": info.provider,
        "digest": info.digest,
        "sample_rate": info.sample_rate_hz,
        "domains": info.domains,
        "default_domain": info.default_domain,
        "measures": info.measures,
    }
    return JSONResponse({"models": [model]})


async def _healthz(_request: Request) -> Response:
    return JSONResponse({"status": "ok"})


async def _readyz(service: Service, _request: Request) -> Response:
    if not service.ready:
        raise Problem("unavailable", "the server is starting or ending", retry_after_s=1)
    return JSONResponse({"status": "ready"})


async def _metrics(service: Service, _request: Request) -> Response:
    return Response(service.metrics.text(), headers={"Content-Type": CONTENT_TYPE})


async def _openapi(_request: Request) -> Response:
    return JSONResponse(json.loads((_PAGES / "openapi.json").read_bytes()))


async def _page(name: str, _request: Request) -> Response:
    return Response((_PAGES / name).read_bytes(), media_type="text/html", headers=_PAGE_HEADERS)


async def _on_problem(connection: HTTPConnection, exc: Exception) -> Response | WebSocketClose:
    if not isinstance(exc, Problem):
        raise exc
    if connection.scope["type"] == "websocket" and _DENIAL not in connection.scope.get(
        "extensions", {}
    ):
        return WebSocketClose(code=1008, reason=exc.kind)
    return exc.response(request_id(connection.scope))


async def _on_http_exception(
    connection: HTTPConnection, exc: Exception
) -> Response | WebSocketClose:
    """Gives the framework's own refusals the body that all have."""
    status = getattr(exc, "status_code", 500)
    kind, detail = _REFUSALS.get(status, ("bad-request", "see /openapi.json"))
    problem = Problem(kind, detail, headers=getattr(exc, "headers", None))
    return await _on_problem(connection, problem)


async def _on_disconnect(_connection: HTTPConnection, _exc: Exception) -> Response:
    return Response(status_code=499)  # which nobody reads; it is for the log


async def _on_failure(connection: HTTPConnection, _exc: Exception) -> Response:
    problem = Problem("internal", "the server's log has the reason under this request_id")
    return problem.response(request_id(connection.scope))
